/* Cuts a thread's workspace into buffers, or only counts what they need. */
#ifndef VIDEOSSM_CPU_BUFFERS_H
#define VIDEOSSM_CPU_BUFFERS_H

#include "cpu/vector.h"

namespace videossm {
namespace VIDEOSSM_SET {

struct Buffers {
    explicit Buffers(float* workspace) : start(workspace) {}

    /* At a multiple of 64 bytes from the start; null where there is no workspace. */
    float* take(int64_t count) {
        float* const taken = start ? start + floats : nullptr;
        floats += round_up(count, 16);
        return taken;
    }

    float* start;
    int64_t floats = 0;  // taken so far
};

}  // namespace VIDEOSSM_SET
}  // namespace videossm

#endif
