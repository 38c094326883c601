/* SelectiveScan of a single token: 2^k lanes have a channel and a state each, or several if there are more. */
#ifndef VIDEOSSM_KERNELS_SELECTIVE_STEP_CUH
#define VIDEOSSM_KERNELS_SELECTIVE_STEP_CUH

#include "kernels/pieces.cuh"
#include "kernels/selective_scan.h"
#include "kernels/selective_scan_math.cuh"

namespace videossm {

constexpr int STEP_THREADS = 128;

/* Lanes of a channel. */
constexpr __host__ __device__ int count_step_lanes(int state_dim) {
    int lanes = 1;
    while (lanes < state_dim && lanes < WARP) {
        lanes *= 2;
    }
    return lanes;
}

template <typename T>
__global__ void __launch_bounds__(STEP_THREADS) selective_step(const SelectiveScanTask<T> task) {
    const int lanes = count_step_lanes(task.state_dim);
    const int lane = static_cast<int>(threadIdx.x) % lanes;
    const int64_t number = (int64_t{blockIdx.x} * STEP_THREADS + threadIdx.x) / lanes;  // of B D
    const bool exists = number < int64_t{task.batch} * task.channels;
    const int batch = exists ? static_cast<int>(number / task.channels) : 0;
    const int channel = exists ? static_cast<int>(number % task.channels) : 0;
    const int64_t at = exists ? number : 0;

    const float u = to_float(task.u[at]);
    const float biased = to_float(task.delta[at]) + (task.delta_bias ? task.delta_bias[channel] : 0.f);
    const float step = task.delta_softplus ? softplus(biased) : biased;
    float y = 0;
    for (int n = lane; n < task.state_dim && exists; n += lanes) {
        const int64_t row = int64_t{batch} * task.state_dim + n, state = at * task.state_dim + n;
        const float decay = exp2_fast(step * LOG2_E * task.A[int64_t{channel} * task.state_dim + n]);
        const float x = fmaf(decay, task.state[state], step * u * to_float(task.B[row]));
        task.last_state[state] = x;
        y = task.y ? fmaf(to_float(task.C[row]), x, y) : y;
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
        y += __shfl_xor_sync(FULL_WARP, y, distance);
    }
    if (task.y && exists && lane == 0) {
        y = task.D ? fmaf(task.D[channel], u, y) : y;
        task.y[at] = from_float<T>(task.z ? y * silu(to_float(task.z[at])) : y);
    }
}

}  // namespace videossm

#endif
