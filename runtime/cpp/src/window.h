// The window as a ring: which chunk lies in which slot, what positions the passes see. All of it follows from the
// number of committed chunks. Counts are of chunks, but for `chunk_frames`. Nothing here allocates.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "manifest.h"

namespace videossm::internal {

class Ring {
public:
    explicit Ring(const Window& window)
        : window_(window),
          slot_position(static_cast<size_t>(window.chunks * window.chunk_frames)),
          frame_position(static_cast<size_t>(window.chunk_frames)) {}

    // The sink keeps its place, the others go round behind it.
    int64_t slot(int64_t chunk) const {
        if (chunk < window_.chunks) {
            return chunk;
        }
        return window_.sink + (chunk - window_.sink) % (window_.chunks - window_.sink);
    }

    // How many chunks lie in the window while `chunk` is made, and which is at `rank` in the video's order.
    int64_t held_count(int64_t chunk) const { return std::min(chunk, window_.chunks); }
    int64_t held(int64_t chunk, int64_t rank) const {
        return rank < window_.sink || chunk <= window_.chunks ? rank : chunk - window_.chunks + rank;
    }

    bool evicts(int64_t chunk) const { return chunk >= window_.chunks; }

    // Fills slot_position and frame_position for `chunk`, of whose window (while `now` is made) the first `visible`
    // chunks count as present.
    void place(int64_t chunk, int64_t now, int64_t visible) {
        std::fill(slot_position.begin(), slot_position.end(), -1);
        for (int64_t rank = 0; rank < visible; ++rank) {
            const int64_t other = held(now, rank);
            count_up(slot_position.data() + slot(other) * window_.chunk_frames, window_.absolute ? other : rank);
        }
        count_up(frame_position.data(), window_.absolute ? chunk : visible);
    }

    // Evicted / seen chunks while `chunk` is made, within 0.001 to 1.
    double rho(int64_t chunk) const {
        if (chunk == 0) {
            return kLeastRho;
        }
        const int64_t evicted = std::max(int64_t{0}, chunk - window_.chunks);
        return std::min(std::max(static_cast<double>(evicted) / static_cast<double>(chunk), kLeastRho), 1.0);
    }

private:
    static constexpr double kLeastRho = 1e-3;

    void count_up(int64_t* positions, int64_t place) const {
        for (int64_t i = 0; i < window_.chunk_frames; ++i) {
            positions[i] = place * window_.chunk_frames + i;
        }
    }

    const Window window_;

public:
    std::vector<int64_t> slot_position, frame_position;
};

}  // namespace videossm::internal
