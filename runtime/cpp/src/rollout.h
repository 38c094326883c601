// The rollout: a stream of chunks from a plan and a prompt.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backend.h"
#include "plan_files.h"
#include "program.h"
#include "state.h"
#include "tokenizer.h"
#include "window.h"

namespace videossm::internal {

// An open plan: what rollouts share. Nothing in it changes once it is made.
struct Plan {
    PlanFiles files;
    std::unique_ptr<WordLevel> tokenizer;  // none for a plan without text, or with another kind of tokenizer
    std::unique_ptr<Backend> backend;
    Engines engines;

    const Manifest& manifest() const { return files.manifest; }
};

using Log = std::function<void(const std::string& line)>;

// Throws Error.
std::shared_ptr<const Plan> open_plan(const std::string& path, int threads, int device, const Log& log);

// One for each stream of the batch. `texts` is empty where ids were given.
struct Prompts {
    std::vector<std::string> texts;
    std::vector<int64_t> ids, mask;  // [B, L]

    bool same_tokens(const Prompts& other) const { return ids == other.ids && mask == other.mask; }
};

// Throws Error.
Prompts encode_prompts(const Plan& plan, const std::vector<std::string>& texts);
Prompts prompts_of_ids(const Plan& plan, const int64_t* ids, const int64_t* mask);

// All that the next chunk depends on, on the host.
struct Snapshot {
    std::optional<Prompts> prompts, pending;
    std::vector<uint64_t> seeds;
    int64_t chunk = 0;
    std::map<std::string, std::vector<char>> tensors;
};

struct ChunkView {
    int64_t index = 0;
    double start_s = 0;
    int64_t frames = 0;
    const uint8_t* pixels = nullptr;  // [B, T, H, W, 3], until the next call
};

using Progress = std::function<void(int64_t chunk, size_t passes_done, size_t pass_count)>;

// One thread uses it; cancel() and set_prompts() may be called from any other.
class Rollout {
public:
    enum class Outcome { chunk, ended, cancelled };

    // `seeds`: one for each stream. `prompts`: none for a plan without text.
    Rollout(std::shared_ptr<const Plan> plan, std::optional<Prompts> prompts, std::vector<uint64_t> seeds, Progress progress);
    // Goes on from `snapshot`.
    Rollout(std::shared_ptr<const Plan> plan, const Snapshot& snapshot, Progress progress);

    const Plan& plan() const { return *plan_; }
    std::shared_ptr<const Plan> shared_plan() const { return plan_; }
    int64_t next_index() const { return chunk_; }
    int64_t next_frames() const;
    size_t sample_count() const { return program_.sample_count(); }
    double seconds(size_t engine) const { return program_.seconds(engine); }

    Outcome next(ChunkView& view);
    ChunkView append(const float* sample, size_t count);
    void read_sample(float* sample) const;

    void set_prompts(Prompts prompts);
    void cancel() { cancelled_ = true; }

    Snapshot snapshot() const;
    void restore(const Snapshot& snapshot);
    std::unique_ptr<Rollout> fork() const;

private:
    bool ended() const { return chunk_ == plan_->manifest().stream.chunks; }
    void check_whole() const;
    bool take_cancel() { return cancelled_.exchange(false); }
    void switch_prompt();
    void encode(Prompts prompts);
    void recommit();
    bool denoise();  // false when cancelled
    void keep();
    ChunkView finish();
    void prepare(int64_t chunk, int64_t visible);
    const float* noise_of(uint32_t draw);

    const std::shared_ptr<const Plan> plan_;
    const Progress progress_;
    Program program_;
    std::optional<Ring> ring_;
    std::vector<uint64_t> seeds_;
    std::vector<float> noise_;
    int64_t chunk_ = 0;
    bool torn_ = false;  // the buffers lie between two chunks
    bool made_ = false;  // they hold the sample of the last chunk
    std::optional<Prompts> prompts_;  // in force
    mutable std::mutex mutex_;        // of pending_
    std::optional<Prompts> pending_;
    std::atomic<bool> cancelled_{false};
};

// A state file of it. Throws Error where prompts were given as ids, which such a file does not hold.
StateFile state_file_of(const Snapshot& snapshot);
Snapshot snapshot_of(const Plan& plan, StateFile file);

}  // namespace videossm::internal
