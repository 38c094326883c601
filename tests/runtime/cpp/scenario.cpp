// One stream with all that can happen to it, through videossm.hpp: scenario PLAN THREADS CHUNKS OUT [PROMPT PROMPT]
//
// Writes the frames of all chunks to OUT. In the middle the prompt changes, from another thread; at a quarter the
// stream is saved, forked and snapshot, and what goes on from each must be the same, side by side in three threads; at
// three quarters it is cancelled from another thread, and goes on.
#include <videossm/videossm.hpp>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace {

using Bytes = std::vector<char>;

void require(bool holds, const char* what) {
    if (!holds) {
        std::fprintf(stderr, "scenario: %s\n", what);
        std::exit(1);
    }
}

Bytes bytes_of(const videossm_chunk& chunk) {
    const auto* first = reinterpret_cast<const char*>(chunk.pixels);
    return Bytes(first, first + chunk.stream_stride * static_cast<size_t>(chunk.batch));
}

Bytes next(videossm::Rollout& rollout) {
    const auto chunk = rollout.next();
    require(chunk.has_value(), "got no chunk");
    return bytes_of(*chunk);
}

// Cancels from another thread, over and over, until three chunks have been given up.
void cancel_often(videossm::Rollout& rollout) {
    std::atomic<bool> done{false};
    std::thread canceller([&] {
        while (!done) {
            rollout.cancel();
            std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
    });
    int given_up = 0;
    for (int i = 0; i < 1000 && given_up < 3; ++i) {
        const std::int64_t index = rollout.next_index();
        given_up += !rollout.next() && rollout.next_index() == index;
    }
    done = true;
    canceller.join();
    require(given_up == 3, "cancel did nothing");
}

}  // namespace

int main(int argc, char** argv) {
    require(argc == 5 || argc == 7, "got other arguments");
    const int chunks = std::atoi(argv[3]);
    const bool text = argc == 7;
    const std::string out = argv[4], state = out + ".state";
    try {
        const videossm::Plan plan(argv[1], std::atoi(argv[2]));
        const auto batch = static_cast<size_t>(plan.info().batch);
        const auto prompts = [&](int index) {
            return text ? std::vector<std::string>(batch, argv[5 + index]) : std::vector<std::string>();
        };
        videossm::Rollout rollout(plan, prompts(0), {5});
        std::vector<Bytes> frames;
        for (int i = 0; i < chunks; ++i) {
            if (i == chunks / 4) {
                rollout.save(state);
                videossm::Rollout fork = rollout.fork(), resumed = videossm::Rollout::resume(plan, state);
                const videossm::Snapshot snapshot = rollout.snapshot();
                std::vector<Bytes> ahead[3];
                const auto run = [](videossm::Rollout& each, std::vector<Bytes>& into) {
                    for (int k = 0; k < 5; ++k) {
                        into.push_back(next(each));
                    }
                };
                std::thread others[] = {std::thread([&] { run(fork, ahead[1]); }), std::thread([&] { run(resumed, ahead[2]); })};
                run(rollout, ahead[0]);
                for (std::thread& other : others) {
                    other.join();
                }
                require(ahead[0] == ahead[1] && ahead[0] == ahead[2], "got other frames from a fork or a saved state");
                rollout.restore(snapshot);
            }
            if (i == chunks / 2 && text) {
                std::thread([&] { rollout.set_prompt(prompts(1)); }).join();
            }
            if (i == 3 * chunks / 4) {
                const videossm::Snapshot snapshot = rollout.snapshot();
                cancel_often(rollout);
                rollout.restore(snapshot);
                videossm::Rollout other = videossm::Rollout::resume(plan, state);
                rollout.cancel();
                require(!rollout.next() && other.next(), "a cancel waits for the next chunk, of its own rollout alone");
            }
            frames.push_back(next(rollout));
        }
        std::ofstream file(out, std::ios::binary);
        for (const Bytes& each : frames) {
            file.write(each.data(), static_cast<std::streamsize>(each.size()));
        }
        file.close();
        require(bool(file), "cannot write the frames");
    } catch (const videossm::Error& error) {
        std::fprintf(stderr, "scenario: %s\n", error.what());
        return 2;
    }
    return 0;
}
