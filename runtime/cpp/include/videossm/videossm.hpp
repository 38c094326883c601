/* videossm for C++17, over the C interface: handles that free themselves, and errors as exceptions. A whole program:

       #include <videossm/videossm.hpp>

       #include <cstdio>

       int main(int argc, char **argv) {
           try {
               videossm::Plan plan(argc > 1 ? argv[1] : "engine.plan");
               videossm::Rollout rollout(plan, "a red circle bounces on gray", 7);
               for (int i = 0; i < 4; ++i) {
                   const auto chunk = rollout.next();
                   if (!chunk) {
                       break;  // the clip is over
                   }
                   std::printf("%d frames from %.2f s\n", int(chunk->frames), chunk->start_s);
                   if (i == 1) {
                       rollout.set_prompt("a blue square moves left on black");
                   }
               }
               rollout.save("stream.state");
           } catch (const videossm::Error &error) {
               std::fprintf(stderr, "%s\n", error.what());
               return 2;
           }
       }

   Ownership, threads and lifetimes are those of videossm.h. */
#ifndef VIDEOSSM_VIDEOSSM_HPP
#define VIDEOSSM_VIDEOSSM_HPP

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "videossm/videossm.h"

namespace videossm {

class Error : public std::runtime_error {
public:
    Error(videossm_status status, const std::string &text) : std::runtime_error(text), status_(status) {}
    videossm_status status() const { return status_; }

private:
    videossm_status status_;
};

namespace detail {

/* Calls `function` with a place for its error last. Throws that one; returns any other status. */
template <typename Function, typename... Arguments>
videossm_status checked(Function function, Arguments... arguments) {
    videossm_error *error = nullptr;
    const videossm_status status = function(arguments..., &error);
    if (!videossm_is_error(status)) {
        return status;
    }
    const std::string text = error ? videossm_error_text(error) : "videossm: out of memory";
    videossm_error_free(error);
    throw Error(status, text);
}

struct Free {
    void operator()(videossm_plan *plan) const { videossm_plan_free(plan); }
    void operator()(videossm_rollout *rollout) const { videossm_rollout_free(rollout); }
    void operator()(videossm_snapshot *snapshot) const { videossm_snapshot_free(snapshot); }
};

}  // namespace detail

/* Of one plan's stream; cheap to keep, as large as its state. */
using Snapshot = std::unique_ptr<videossm_snapshot, detail::Free>;

class Plan {
public:
    /* `threads`: of a CPU; 0 for one a core. `device`: index of the GPU, for a plan of TensorRT. */
    explicit Plan(const std::string &path, int threads = 0, int device = 0) {
        videossm_plan_options options = VIDEOSSM_PLAN_OPTIONS;
        options.threads = threads;
        options.device = device;
        videossm_plan *plan = nullptr;
        detail::checked(videossm_plan_open, path.c_str(), &options, &plan);
        plan_.reset(plan);
    }

    videossm_plan_info info() const {
        videossm_plan_info info{};
        info.size_bytes = sizeof info;
        detail::checked(videossm_plan_describe, plan_.get(), &info);
        return info;
    }

    videossm_plan *handle() const { return plan_.get(); }

private:
    std::unique_ptr<videossm_plan, detail::Free> plan_;
};

class Rollout {
public:
    /* For a plan of batch 1. */
    Rollout(const Plan &plan, const std::string &prompt, std::uint64_t seed = 0)
        : Rollout(plan, std::vector<std::string>{prompt}, {seed}) {}

    /* `prompts`: one for each stream of the batch, none for a plan without text. `seeds`: as many, or one, or none. */
    Rollout(const Plan &plan, const std::vector<std::string> &prompts, const std::vector<std::uint64_t> &seeds = {}) {
        const std::vector<const char *> texts = pointers(prompts);
        videossm_rollout_options options = VIDEOSSM_ROLLOUT_OPTIONS;
        options.prompts = texts.data();
        options.prompt_count = texts.size();
        options.seeds = seeds.data();
        options.seed_count = seeds.size();
        videossm_rollout *rollout = nullptr;
        detail::checked(videossm_rollout_create, plan.handle(), &options, &rollout);
        rollout_.reset(rollout);
    }

    static Rollout resume(const Plan &plan, const std::string &path) {
        videossm_rollout *rollout = nullptr;
        const videossm_rollout_options *defaults = nullptr;
        detail::checked(videossm_rollout_resume, plan.handle(), path.c_str(), defaults, &rollout);
        return Rollout(rollout);
    }

    /* The next chunk, its pixels valid until the next call or where `target` is. None at the end of a clip, and once
       after cancel(). */
    std::optional<videossm_chunk> next(const videossm_target *target = nullptr) {
        videossm_chunk chunk{};
        if (detail::checked(videossm_rollout_next, rollout_.get(), target, &chunk) != VIDEOSSM_OK) {
            return std::nullopt;
        }
        return chunk;
    }

    videossm_chunk append(const std::vector<float> &sample) {
        videossm_chunk chunk{};
        const videossm_target *view = nullptr;
        detail::checked(videossm_rollout_append, rollout_.get(), sample.data(), sample.size(), view, &chunk);
        return chunk;
    }

    std::vector<float> sample() {
        std::size_t count = 0;
        float *none = nullptr;
        detail::checked(videossm_rollout_sample, rollout_.get(), none, &count);
        std::vector<float> values(count);
        detail::checked(videossm_rollout_sample, rollout_.get(), values.data(), &count);
        return values;
    }

    void set_prompt(const std::string &prompt) { set_prompt(std::vector<std::string>{prompt}); }

    void set_prompt(const std::vector<std::string> &prompts) {
        const std::vector<const char *> texts = pointers(prompts);
        detail::checked(videossm_rollout_set_prompt, rollout_.get(), texts.data(), texts.size());
    }

    void cancel() { videossm_rollout_cancel(rollout_.get()); }

    void save(const std::string &path) { detail::checked(videossm_rollout_save, rollout_.get(), path.c_str()); }

    Rollout fork() {
        videossm_rollout *fork = nullptr;
        detail::checked(videossm_rollout_fork, rollout_.get(), &fork);
        return Rollout(fork);
    }

    Snapshot snapshot() {
        videossm_snapshot *snapshot = nullptr;
        detail::checked(videossm_rollout_snapshot, rollout_.get(), &snapshot);
        return Snapshot(snapshot);
    }

    void restore(const Snapshot &snapshot) {
        const videossm_snapshot *handle = snapshot.get();
        detail::checked(videossm_rollout_restore, rollout_.get(), handle);
    }

    std::int64_t next_index() const { return videossm_rollout_next_index(rollout_.get()); }

    videossm_rollout *handle() const { return rollout_.get(); }

private:
    explicit Rollout(videossm_rollout *rollout) : rollout_(rollout) {}

    static std::vector<const char *> pointers(const std::vector<std::string> &texts) {
        std::vector<const char *> found;
        for (const std::string &text : texts) {
            found.push_back(text.c_str());
        }
        return found;
    }

    std::unique_ptr<videossm_rollout, detail::Free> rollout_;
};

}  // namespace videossm

#endif
