/* A part of the workspace for each thread, each on cache lines of its own. */
#ifndef VIDEOSSM_CPU_WORKSPACE_H
#define VIDEOSSM_CPU_WORKSPACE_H

#include <cstddef>
#include <cstdint>

namespace videossm {

constexpr size_t CACHE_LINE = 64;

/* Of one thread, which needs `floats`. */
inline size_t part_bytes(int64_t floats) {
    return (static_cast<size_t>(floats) * sizeof(float) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

/* The caller's memory may start anywhere. */
inline size_t workspace_bytes(int threads, int64_t floats) {
    return static_cast<size_t>(threads) * part_bytes(floats) + CACHE_LINE - 1;
}

inline float* part_of(void* workspace, int thread, int64_t floats) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(workspace);
    const uintptr_t start = (address + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    return reinterpret_cast<float*>(start + static_cast<size_t>(thread) * part_bytes(floats));
}

}  // namespace videossm

#endif
