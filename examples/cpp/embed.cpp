// A stream inside a program of one's own, in a terminal of 24-bit colours: embed PLAN PROMPT [PROMPT ..]
//
// The stream is made in a thread; the main thread reads lines: a number and Enter change to that prompt, counted from
// 1, q and Enter end it, within a chunk. Frames are shown at the video's pace.
#include <videossm/videossm.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

namespace {

// Two rows of pixels are one of text: the upper half block in the upper one's colour, on the lower one's.
void show(const videossm_chunk& chunk, int64_t frame) {
    const uint8_t* pixels = chunk.pixels + static_cast<size_t>(frame) * chunk.frame_stride;
    std::string text = "\x1b[H";
    char cell[64];
    for (int64_t y = 0; y + 1 < chunk.height; y += 2) {
        for (int64_t x = 0; x < chunk.width; ++x) {
            const uint8_t* above = pixels + static_cast<size_t>(y) * chunk.row_stride + 3 * x;
            const uint8_t* below = above + chunk.row_stride;
            std::snprintf(cell, sizeof cell, "\x1b[38;2;%d;%d;%dm\x1b[48;2;%d;%d;%dm\xE2\x96\x80", above[0], above[1],
                          above[2], below[0], below[1], below[2]);
            text += cell;
        }
        text += "\x1b[0m\n";
    }
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
}

void play(videossm::Rollout& rollout, double fps) {
    auto due = std::chrono::steady_clock::now();
    try {
        while (const auto chunk = rollout.next()) {  // none when cancelled, or when a clip is over
            for (int64_t frame = 0; frame < chunk->frames; ++frame) {
                std::this_thread::sleep_until(due);
                due = std::max(due, std::chrono::steady_clock::now() - std::chrono::seconds(1)) +
                      std::chrono::microseconds(static_cast<int64_t>(1e6 / fps));
                show(*chunk, frame);
            }
        }
    } catch (const videossm::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: embed PLAN PROMPT [PROMPT ..]\n");
        return 2;
    }
    try {
        const videossm::Plan plan(argv[1]);
        const auto batch = static_cast<size_t>(plan.info().batch);
        const auto prompt = [&](int number) { return std::vector<std::string>(batch, argv[1 + number]); };
        videossm::Rollout rollout(plan, prompt(1));
        std::thread player([&] { play(rollout, plan.info().fps); });
        for (std::string line; std::getline(std::cin, line) && line != "q";) {
            const int number = std::atoi(line.c_str());
            try {
                if (number >= 1 && number < argc - 1) {
                    rollout.set_prompt(prompt(number));  // from this thread: the next chunk follows it
                }
            } catch (const videossm::Error& error) {
                std::fprintf(stderr, "%s\n", error.what());
            }
        }
        rollout.cancel();
        player.join();
    } catch (const videossm::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
    return 0;
}
