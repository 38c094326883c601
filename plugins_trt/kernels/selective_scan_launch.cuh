/* SelectiveScan of one type: what selective_scan_<type>.cu instantiates. */
#ifndef VIDEOSSM_KERNELS_SELECTIVE_SCAN_LAUNCH_CUH
#define VIDEOSSM_KERNELS_SELECTIVE_SCAN_LAUNCH_CUH

#include "kernels/launch.h"
#include "kernels/selective_scan.cuh"
#include "kernels/selective_scan_launch.h"
#include "kernels/selective_step.cuh"

namespace videossm {

/* Warps of a multiprocessor, which has room for 16, below which a channel gets more lanes: they cost more steps of the
 * scan over lanes, and pay where there are too few warps to wait for each other's numbers. */
constexpr int WARPS_WANTED = 12;

template <typename T, int LANES>
videossm_status launch_selective_scan(const SelectiveScanTask<T>& task, cudaStream_t stream) {
    using Shape = SelectiveShape<LANES>;
    const int groups = (task.channels + Shape::CHANNELS - 1) / Shape::CHANNELS;
    const LaunchSizes sizes = {dim3(static_cast<unsigned>(task.batch) * static_cast<unsigned>(groups)),
                               SELECTIVE_THREADS, Shape::shared_bytes(task.state_dim)};
    return launch("SelectiveScan's kernel", selective_scan<T, LANES>, task, sizes, stream);
}

template <typename T>
videossm_status selective_scan_on(const videossm_selective_scan_params& params, cudaStream_t stream) {
    SelectiveScanTask<T> task = {};
    task.u = static_cast<const T*>(params.u);
    task.delta = static_cast<const T*>(params.delta);
    task.B = static_cast<const T*>(params.B);
    task.C = static_cast<const T*>(params.C);
    task.A = params.A;
    task.state = params.state;
    task.D = params.D;
    task.z = static_cast<const T*>(params.z);
    task.delta_bias = params.delta_bias;
    task.y = static_cast<T*>(params.y);
    task.last_state = params.last_state;
    task.batch = static_cast<int>(params.batch);
    task.channels = static_cast<int>(params.channels);
    task.tokens = static_cast<int>(params.tokens);
    task.state_dim = static_cast<int>(params.state_dim);
    task.delta_softplus = params.delta_softplus != 0;

    const int64_t sequences = params.batch * params.channels;
    if (task.tokens == 1) {
        const int64_t threads = sequences * count_step_lanes(task.state_dim);
        const dim3 grid(static_cast<unsigned>((threads + STEP_THREADS - 1) / STEP_THREADS));
        return launch("SelectiveScan's step", selective_step<T>, task, {grid, STEP_THREADS, 0}, stream);
    }
    int multiprocessors = 0;
    if (const videossm_status status = count_multiprocessors(multiprocessors)) {
        return status;
    }
    const auto enough = [&](int lanes) {
        return sequences * lanes >= int64_t{WARPS_WANTED} * WARP * multiprocessors;
    };
    if (enough(8)) {
        return launch_selective_scan<T, 8>(task, stream);
    }
    return enough(16) ? launch_selective_scan<T, 16>(task, stream) : launch_selective_scan<T, 32>(task, stream);
}

}  // namespace videossm

#endif
