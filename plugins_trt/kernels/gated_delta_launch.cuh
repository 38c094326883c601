/* GatedDeltaScan of one type: what gated_delta_<type>.cu instantiates. */
#ifndef VIDEOSSM_KERNELS_GATED_DELTA_LAUNCH_CUH
#define VIDEOSSM_KERNELS_GATED_DELTA_LAUNCH_CUH

#include <type_traits>

#include "kernels/gated_delta_launch.h"
#include "kernels/gated_delta_prepare.cuh"
#include "kernels/gated_delta_scan.cuh"
#include "kernels/launch.h"

namespace videossm {

/* 1 / |key| does not fit fp16: there the normalised keys themselves are stored. */
template <typename T>
bool stores_normalized_key(const videossm_gated_delta_params& params) {
    return std::is_same_v<T, Half> && params.normalize_key != 0;
}

template <typename T>
int64_t count_blocks(const videossm_gated_delta_params& params) {
    return (params.tokens + BLOCK<T> - 1) / BLOCK<T>;
}

template <typename T>
size_t record_bytes(const videossm_gated_delta_params& params) {
    return sizeof(Record<T>) * static_cast<size_t>(params.batch * params.heads * count_blocks<T>(params));
}

/* The records, then the normalised keys; the caller's memory may start anywhere. */
template <typename T>
size_t gated_delta_workspace(const videossm_gated_delta_params& params) {
    const int64_t keys = params.batch * params.tokens * params.heads * params.key_dim;
    const size_t key_bytes = stores_normalized_key<T>(params) ? sizeof(T) * static_cast<size_t>(keys) : 0;
    return record_bytes<T>(params) + key_bytes + PIECE_BYTES - 1;
}

template <typename T>
GatedDeltaTask<T> make_task(const videossm_gated_delta_params& params) {
    constexpr uintptr_t BELOW = PIECE_BYTES - 1;
    const uintptr_t start = (reinterpret_cast<uintptr_t>(params.workspace) + BELOW) & ~BELOW;
    GatedDeltaTask<T> task = {};
    task.query = static_cast<const T*>(params.query);
    task.key = static_cast<const T*>(params.key);
    task.value = static_cast<const T*>(params.value);
    task.decay = params.decay;
    task.beta = params.beta;
    task.state = params.state;
    task.output = static_cast<T*>(params.output);
    task.last_state = params.last_state;
    task.records = reinterpret_cast<Record<T>*>(start);
    if (stores_normalized_key<T>(params)) {
        task.normalized_key = reinterpret_cast<T*>(start + record_bytes<T>(params));
    }
    task.batch_heads = static_cast<int>(params.batch * params.heads);
    task.tokens = static_cast<int>(params.tokens);
    task.heads = static_cast<int>(params.heads);
    task.value_dim = static_cast<int>(params.value_dim);
    task.blocks = static_cast<int>(count_blocks<T>(params));
    task.scale = params.scale;
    task.normalize_key = params.normalize_key != 0;
    task.normalize_query = params.normalize_query != 0;
    return task;
}

/* Of a thread block: as many as there are columns for, halved until every multiprocessor has a thread block. */
inline int choose_scan_warps(int heads, int value_dim, int at_most, int multiprocessors) {
    const int groups = value_dim / SCAN_COLUMNS;
    int warps = at_most;
    while (groups % warps != 0 || (warps > 1 && heads * (groups / warps) < multiprocessors)) {
        warps /= 2;
    }
    return warps;
}

template <typename T, int KEY_DIM, bool WANTED>
videossm_status launch_gated_delta(GatedDeltaTask<T> task, cudaStream_t stream) {
    using Shape = Tiles<T, KEY_DIM, WANTED>;
    static_assert(Shape::scan_bytes(2) <= SHARED_BYTES_AT_MOST, "more warps than 2 have fewer stages");
    static_assert(Shape::scan_bytes(SCAN_WARPS<WANTED>) <= SHARED_BYTES_AT_MOST, "the most warps fit");
    int multiprocessors = 0;
    if (const videossm_status status = count_multiprocessors(multiprocessors)) {
        return status;
    }
    const unsigned records = static_cast<unsigned>(task.batch_heads) * static_cast<unsigned>(task.blocks);
    const LaunchSizes prepare = {dim3((records + PREPARE_WARPS - 1) / PREPARE_WARPS), PREPARE_WARPS * WARP,
                                 PREPARE_WARPS * static_cast<int>(sizeof(PrepareShared<T>))};
    if (const videossm_status status = launch("GatedDeltaScan's first kernel", gated_delta_prepare<T, KEY_DIM, WANTED>,
                                              task, prepare, stream)) {
        return status;
    }
    if (task.normalized_key) {
        task.key = task.normalized_key;
    }
    const int warps = choose_scan_warps(task.batch_heads, task.value_dim, SCAN_WARPS<WANTED>, multiprocessors);
    const LaunchSizes scan = {dim3(static_cast<unsigned>(task.heads),
                                   static_cast<unsigned>(task.value_dim / (warps * SCAN_COLUMNS)),
                                   static_cast<unsigned>(task.batch_heads / task.heads)),
                              static_cast<unsigned>(warps * WARP),
                              Shape::scan_bytes(warps)};
    return launch("GatedDeltaScan's second kernel", gated_delta_scan<T, KEY_DIM, WANTED>, task, scan, stream);
}

template <typename T>
videossm_status gated_delta_scan_on(const videossm_gated_delta_params& params, cudaStream_t stream) {
    const GatedDeltaTask<T> task = make_task<T>(params);
    const bool wanted = params.output != nullptr;
    switch (params.key_dim) {
        case 32:
            return wanted ? launch_gated_delta<T, 32, true>(task, stream)
                          : launch_gated_delta<T, 32, false>(task, stream);
        case 64:
            return wanted ? launch_gated_delta<T, 64, true>(task, stream)
                          : launch_gated_delta<T, 64, false>(task, stream);
        default:
            return wanted ? launch_gated_delta<T, 128, true>(task, stream)
                          : launch_gated_delta<T, 128, false>(task, stream);
    }
}

}  // namespace videossm

#endif
