// The C interface: exceptions become statuses, handles are the objects of rollout.h.
#include <cstring>
#include <new>

#include "error.h"
#include "rollout.h"

using namespace videossm::internal;

struct videossm_error {
    videossm_status status;
    std::string text;
};

struct videossm_plan {
    std::shared_ptr<const Plan> plan;
};

struct videossm_rollout {
    std::unique_ptr<Rollout> rollout;
};

struct videossm_snapshot {
    Snapshot snapshot;
    std::string stream_identity, precision;
};

namespace {

videossm_status fail(videossm_error** error, videossm_status status, const char* text) noexcept {
    if (error) {
        try {
            *error = new videossm_error{status, text};
        } catch (const std::bad_alloc&) {
            *error = nullptr;
        }
    }
    return status;
}

// Calls `body`, which returns a status or throws.
template <typename Body>
videossm_status guarded(videossm_error** error, const Body& body) noexcept {
    try {
        return body();
    } catch (const Error& wrong) {
        return fail(error, wrong.status, wrong.what());
    } catch (const std::bad_alloc&) {
        return fail(error, VIDEOSSM_ERROR_MEMORY, "memory: got too little, expected more; free some");
    } catch (const std::exception& wrong) {
        return fail(error, VIDEOSSM_ERROR_INTERNAL, wrong.what());
    } catch (...) {
        return fail(error, VIDEOSSM_ERROR_INTERNAL, "videossm: got an unknown error, expected none; report it");
    }
}

void need(bool holds, const char* what, const char* expected) {
    if (!holds) {
        throw argument_error(std::string(what) + ": got none, expected " + expected + "; pass it");
    }
}

std::vector<std::string> texts_of(const char* const* prompts, size_t count) {
    need(count == 0 || prompts, "prompt", "as many texts as prompt_count says");
    std::vector<std::string> texts;
    for (size_t i = 0; i < count; ++i) {
        need(prompts[i], "prompt", "a text");
        texts.emplace_back(prompts[i]);
    }
    return texts;
}

std::vector<uint64_t> seeds_of(const Plan& plan, const videossm_rollout_options& options) {
    const auto batch = static_cast<size_t>(plan.manifest().stream.batch);
    need(options.seed_count == 0 || options.seeds, "seed", "as many as seed_count says");
    if (options.seed_count > 1 && options.seed_count != batch) {
        throw argument_error("seed: got " + std::to_string(options.seed_count) + ", expected " + std::to_string(batch) +
                             ", the plan's batch; add or drop some");
    }
    std::vector<uint64_t> seeds(options.seeds, options.seeds + options.seed_count);
    if (seeds.empty()) {
        seeds.push_back(0);
    }
    while (seeds.size() < batch) {
        if (seeds.back() == UINT64_MAX) {
            throw argument_error("seed: got one after the largest, expected less than 2**64; choose another");
        }
        seeds.push_back(seeds.back() + 1);
    }
    return seeds;
}

// A struct of the caller's, whose end this library or that caller may not know.
template <typename Struct>
Struct known_part(const Struct* given, const Struct& defaults, const char* what) {
    Struct options = defaults;
    if (given) {
        if (given->size_bytes < sizeof(size_t) || given->size_bytes > 1 << 16) {
            throw argument_error(std::string(what) + ".size_bytes: got " + std::to_string(given->size_bytes) +
                                 ", expected that of the struct; use the macro");
        }
        std::memcpy(&options, given, std::min(given->size_bytes, sizeof options));
    }
    return options;
}

Progress progress_of(const videossm_rollout_options& options) {
    if (!options.progress) {
        return {};
    }
    return [call = options.progress, user = options.progress_user](int64_t chunk, size_t done, size_t all) {
        call(user, chunk, done, all);
    };
}

struct Strides {
    size_t stream, frame, row;
};

// Where frames go. Throws Error unless they fit.
Strides strides_in(const videossm_target& target, const Stream& stream, int64_t frames) {
    need(target.pixels, "target.pixels", "memory for frames");
    const size_t row = static_cast<size_t>(stream.width) * 3;
    const auto height = static_cast<size_t>(stream.height), count = static_cast<size_t>(frames);
    const auto batch = static_cast<size_t>(stream.batch);
    Strides strides = {target.stream_stride, target.frame_stride, target.row_stride};
    strides.row = strides.row ? strides.row : row;
    strides.frame = strides.frame ? strides.frame : strides.row * height;
    strides.stream = strides.stream ? strides.stream : strides.frame * count;
    constexpr size_t kMost = SIZE_MAX >> 24;  // times 4096 or 65536, it still fits
    const bool apart = strides.row >= row && strides.row <= kMost && strides.frame >= strides.row * (height - 1) + row &&
                       strides.frame <= kMost && strides.stream >= strides.frame * (count - 1) + row && strides.stream <= kMost;
    const size_t end = strides.stream * (batch - 1) + strides.frame * (count - 1) + strides.row * (height - 1) + row;
    if (!apart || end > target.size_bytes) {
        throw argument_error("target: got " + std::to_string(target.size_bytes) + " bytes with strides " +
                             std::to_string(strides.stream) + ", " + std::to_string(strides.frame) + ", " +
                             std::to_string(strides.row) + ", expected room for " + std::to_string(end) +
                             " bytes without overlap; see videossm_rollout_next_bytes");
    }
    return strides;
}

void give(const Rollout& rollout, const ChunkView& view, const videossm_target* target, const Strides& strides,
          videossm_chunk& chunk) {
    const Stream& stream = rollout.plan().manifest().stream;
    const size_t row = static_cast<size_t>(stream.width) * 3;
    chunk = {view.index, view.start_s, stream.batch, view.frames, stream.height, stream.width, view.pixels,
             row * static_cast<size_t>(stream.height) * static_cast<size_t>(view.frames),
             row * static_cast<size_t>(stream.height), row};
    if (!target) {
        return;
    }
    const uint8_t* source = view.pixels;
    for (int64_t b = 0; b < stream.batch; ++b) {
        for (int64_t t = 0; t < view.frames; ++t) {
            uint8_t* frame = target->pixels + static_cast<size_t>(b) * strides.stream + static_cast<size_t>(t) * strides.frame;
            for (int64_t y = 0; y < stream.height; ++y, source += row) {
                std::memcpy(frame + static_cast<size_t>(y) * strides.row, source, row);
            }
        }
    }
    chunk.pixels = target->pixels;
    chunk.stream_stride = strides.stream;
    chunk.frame_stride = strides.frame;
    chunk.row_stride = strides.row;
}

}  // namespace

uint32_t videossm_version(void) {
    return VIDEOSSM_VERSION_MAJOR * 10000 + VIDEOSSM_VERSION_MINOR * 100 + VIDEOSSM_VERSION_PATCH;
}

int videossm_is_error(videossm_status status) { return status >= VIDEOSSM_ERROR_PLAN; }

videossm_status videossm_error_status(const videossm_error* error) { return error ? error->status : VIDEOSSM_OK; }

const char* videossm_error_text(const videossm_error* error) { return error ? error->text.c_str() : ""; }

void videossm_error_free(videossm_error* error) { delete error; }

videossm_status videossm_plan_open(const char* path, const videossm_plan_options* options, videossm_plan** plan,
                                   videossm_error** error) {
    return guarded(error, [&] {
        need(path && plan, "path or plan", "both");
        const videossm_plan_options known = known_part(options, VIDEOSSM_PLAN_OPTIONS, "plan options");
        const Log log = [&](const std::string& line) {
            if (known.log) {
                known.log(known.log_user, line.c_str());
            }
        };
        auto made = std::make_unique<videossm_plan>();
        made->plan = open_plan(path, known.threads, known.device, log);
        *plan = made.release();
        return VIDEOSSM_OK;
    });
}

videossm_status videossm_plan_describe(const videossm_plan* plan, videossm_plan_info* info, videossm_error** error) {
    return guarded(error, [&] {
        need(plan && info, "plan or info", "both");
        const Manifest& m = plan->plan->manifest();
        size_t state_bytes = 0, sample_count = static_cast<size_t>(m.sample().size_bytes() / sizeof(float));
        for (const auto& [name, tensor] : m.kept()) {
            state_bytes += static_cast<size_t>(tensor.size_bytes());
        }
        bool per_pass = false;
        for (const State& state : m.states) {
            per_pass = per_pass || state.per_pass;
        }
        const size_t room = known_part(info, *info, "plan info").size_bytes;
        const videossm_plan_info found = {room, m.name.c_str(), m.precision.c_str(), m.backend.c_str(), m.checksum.c_str(),
                                          m.stream.fps, m.stream.batch, m.stream.height, m.stream.width,
                                          m.stream.first_frames, m.stream.later_frames, m.stream.chunks.value_or(0),
                                          m.text ? m.text->length : 0, plan->plan->tokenizer != nullptr, !per_pass,
                                          sample_count, state_bytes, m.engines.size(), m.passes.size()};
        std::memcpy(info, &found, std::min(room, sizeof found));
        return VIDEOSSM_OK;
    });
}

void videossm_plan_free(videossm_plan* plan) { delete plan; }

videossm_status videossm_rollout_create(videossm_plan* plan, const videossm_rollout_options* options,
                                        videossm_rollout** rollout, videossm_error** error) {
    return guarded(error, [&] {
        need(plan && rollout, "plan or rollout", "both");
        const videossm_rollout_options known = known_part(options, VIDEOSSM_ROLLOUT_OPTIONS, "rollout options");
        std::optional<Prompts> prompts;
        if (known.ids || known.mask) {
            need(known.ids && known.mask && known.prompt_count == 0, "ids or mask", "both, and no prompts");
            prompts = prompts_of_ids(*plan->plan, known.ids, known.mask);
        } else if (known.prompt_count > 0 || plan->plan->manifest().text) {
            prompts = encode_prompts(*plan->plan, texts_of(known.prompts, known.prompt_count));
        }
        std::vector<uint64_t> seeds = seeds_of(*plan->plan, known);
        auto made = std::make_unique<videossm_rollout>();
        made->rollout = std::make_unique<Rollout>(plan->plan, std::move(prompts), std::move(seeds), progress_of(known));
        *rollout = made.release();
        return VIDEOSSM_OK;
    });
}

void videossm_rollout_free(videossm_rollout* rollout) { delete rollout; }

videossm_status videossm_rollout_next(videossm_rollout* rollout, const videossm_target* target, videossm_chunk* chunk,
                                      videossm_error** error) {
    return guarded(error, [&] {
        need(rollout && chunk, "rollout or chunk", "both");
        Rollout& mine = *rollout->rollout;
        Strides strides = {};
        if (target && mine.next_frames() > 0) {
            strides = strides_in(*target, mine.plan().manifest().stream, mine.next_frames());
        }
        ChunkView view;
        switch (mine.next(view)) {
            case Rollout::Outcome::ended: return VIDEOSSM_ENDED;
            case Rollout::Outcome::cancelled: return VIDEOSSM_CANCELLED;
            case Rollout::Outcome::chunk: break;
        }
        give(mine, view, target, strides, *chunk);
        return VIDEOSSM_OK;
    });
}

videossm_status videossm_rollout_append(videossm_rollout* rollout, const float* sample, size_t count,
                                        const videossm_target* target, videossm_chunk* chunk, videossm_error** error) {
    return guarded(error, [&] {
        need(rollout && chunk && sample, "rollout, sample or chunk", "all of them");
        Rollout& mine = *rollout->rollout;
        Strides strides = {};
        if (target && mine.next_frames() > 0) {
            strides = strides_in(*target, mine.plan().manifest().stream, mine.next_frames());
        }
        give(mine, mine.append(sample, count), target, strides, *chunk);
        return VIDEOSSM_OK;
    });
}

size_t videossm_rollout_next_bytes(const videossm_rollout* rollout) {
    const Stream& stream = rollout->rollout->plan().manifest().stream;
    return static_cast<size_t>(stream.batch * rollout->rollout->next_frames() * stream.height * stream.width * 3);
}

int64_t videossm_rollout_next_index(const videossm_rollout* rollout) { return rollout->rollout->next_index(); }

videossm_status videossm_rollout_sample(videossm_rollout* rollout, float* sample, size_t* count, videossm_error** error) {
    return guarded(error, [&] {
        need(rollout && count, "rollout or count", "both");
        const size_t needed = rollout->rollout->sample_count();
        if (sample) {
            if (*count < needed) {
                throw argument_error("count: got " + std::to_string(*count) + ", expected room for " +
                                     std::to_string(needed) + " numbers; take more");
            }
            rollout->rollout->read_sample(sample);
        }
        *count = needed;
        return VIDEOSSM_OK;
    });
}

videossm_status videossm_rollout_set_prompt(videossm_rollout* rollout, const char* const* prompts, size_t prompt_count,
                                            videossm_error** error) {
    return guarded(error, [&] {
        need(rollout, "rollout", "one");
        rollout->rollout->set_prompts(encode_prompts(rollout->rollout->plan(), texts_of(prompts, prompt_count)));
        return VIDEOSSM_OK;
    });
}

videossm_status videossm_rollout_set_prompt_ids(videossm_rollout* rollout, const int64_t* ids, const int64_t* mask,
                                                videossm_error** error) {
    return guarded(error, [&] {
        need(rollout && ids && mask, "rollout, ids or mask", "all of them");
        rollout->rollout->set_prompts(prompts_of_ids(rollout->rollout->plan(), ids, mask));
        return VIDEOSSM_OK;
    });
}

void videossm_rollout_cancel(videossm_rollout* rollout) { rollout->rollout->cancel(); }

videossm_status videossm_rollout_save(videossm_rollout* rollout, const char* path, videossm_error** error) {
    return guarded(error, [&] {
        need(rollout && path, "rollout or path", "both");
        save_state(path, rollout->rollout->plan().manifest(), state_file_of(rollout->rollout->snapshot()));
        return VIDEOSSM_OK;
    });
}

videossm_status videossm_rollout_resume(videossm_plan* plan, const char* path, const videossm_rollout_options* options,
                                        videossm_rollout** rollout, videossm_error** error) {
    return guarded(error, [&] {
        need(plan && path && rollout, "plan, path or rollout", "all of them");
        const videossm_rollout_options known = known_part(options, VIDEOSSM_ROLLOUT_OPTIONS, "rollout options");
        const Snapshot snapshot = snapshot_of(*plan->plan, load_state(path, plan->plan->manifest()));
        auto made = std::make_unique<videossm_rollout>();
        made->rollout = std::make_unique<Rollout>(plan->plan, snapshot, progress_of(known));
        *rollout = made.release();
        return VIDEOSSM_OK;
    });
}

videossm_status videossm_rollout_fork(videossm_rollout* rollout, videossm_rollout** fork, videossm_error** error) {
    return guarded(error, [&] {
        need(rollout && fork, "rollout or fork", "both");
        auto made = std::make_unique<videossm_rollout>();
        made->rollout = rollout->rollout->fork();
        *fork = made.release();
        return VIDEOSSM_OK;
    });
}

videossm_status videossm_rollout_snapshot(videossm_rollout* rollout, videossm_snapshot** snapshot, videossm_error** error) {
    return guarded(error, [&] {
        need(rollout && snapshot, "rollout or snapshot", "both");
        const Manifest& manifest = rollout->rollout->plan().manifest();
        *snapshot = new videossm_snapshot{rollout->rollout->snapshot(), manifest.stream_identity, manifest.precision};
        return VIDEOSSM_OK;
    });
}

videossm_status videossm_rollout_restore(videossm_rollout* rollout, const videossm_snapshot* snapshot, videossm_error** error) {
    return guarded(error, [&] {
        need(rollout && snapshot, "rollout or snapshot", "both");
        const Manifest& manifest = rollout->rollout->plan().manifest();
        if (snapshot->stream_identity != manifest.stream_identity || snapshot->precision != manifest.precision) {
            throw state_error("snapshot: got one of another plan, expected one of " + manifest.name + "; take another");
        }
        rollout->rollout->restore(snapshot->snapshot);
        return VIDEOSSM_OK;
    });
}

void videossm_snapshot_free(videossm_snapshot* snapshot) { delete snapshot; }

videossm_status videossm_rollout_timing(const videossm_rollout* rollout, size_t index, const char** engine, double* seconds,
                                        videossm_error** error) {
    return guarded(error, [&] {
        need(rollout && engine && seconds, "rollout, engine or seconds", "all of them");
        const auto& engines = rollout->rollout->plan().manifest().engines;
        if (index >= engines.size()) {
            throw argument_error("index: got " + std::to_string(index) + ", expected less than the " +
                                 std::to_string(engines.size()) + " engines; see videossm_plan_describe");
        }
        *engine = engines[index].first.c_str();
        *seconds = rollout->rollout->seconds(index);
        return VIDEOSSM_OK;
    });
}
