/* SelectiveScan of many tokens.
 *
 * LANES lanes of a warp have a channel, ITEMS tokens in a row each; they go through the tokens chunk by chunk, and of a
 * chunk through the N states one by one. Each lane takes its tokens from state 0, the lanes put their ends together by
 * a scan over pairs (decay over the lane's tokens, state at their end), and each takes its tokens again from the state
 * that it then knows. u, delta and z are read once; B and C, which all channels share, once by every thread block.
 */
#ifndef VIDEOSSM_KERNELS_SELECTIVE_SCAN_CUH
#define VIDEOSSM_KERNELS_SELECTIVE_SCAN_CUH

#include "kernels/pieces.cuh"
#include "kernels/selective_scan.h"
#include "kernels/selective_scan_math.cuh"

namespace videossm {

constexpr int SELECTIVE_THREADS = 128;
constexpr int ITEMS = 16;             // tokens of a lane
constexpr int LANE_STRIDE = ITEMS + 4;  // numbers in shared memory: so lanes that load 4 at once meet in no bank

/* Of a thread block. Lanes of a warp side by side have the same tokens of its channels, one after the other: what they
 * load of B and C is the same, and is fetched once. */
template <int LANES>
struct SelectiveShape {
    static constexpr int WARP_CHANNELS = WARP / LANES;
    static constexpr int CHANNELS = SELECTIVE_THREADS / LANES;
    static constexpr int TOKENS = LANES * ITEMS;          // of a chunk
    static constexpr int STATES = SELECTIVE_THREADS / LANES;  // of which B and C are in shared memory
    static constexpr int ROW = LANES * LANE_STRIDE;
    static constexpr int TILE = STATES * ROW;

    /* A and the states, a row for each channel; one longer than it needs, so that channels meet in fewer banks. */
    static constexpr __host__ __device__ int row_of_states(int state_dim) { return state_dim + 1; }

    static constexpr __host__ __device__ int shared_bytes(int state_dim) {
        return static_cast<int>(sizeof(float)) * (2 * TILE + 2 * CHANNELS * row_of_states(state_dim));
    }
};

/* The channel of a thread, computed anew by each phase: kept, it would take registers from the items. */
template <typename T, int LANES>
struct Channel {
    __device__ __forceinline__ explicit Channel(const SelectiveScanTask<T>& task) {
        using Shape = SelectiveShape<LANES>;
        const int thread = recomputed(static_cast<int>(threadIdx.x));
        const int groups = (task.channels + Shape::CHANNELS - 1) / Shape::CHANNELS;
        batch = static_cast<int>(blockIdx.x) / groups;
        first = static_cast<int>(blockIdx.x) % groups * Shape::CHANNELS;
        lane = thread % WARP / Shape::WARP_CHANNELS;
        own = thread / WARP * Shape::WARP_CHANNELS + thread % Shape::WARP_CHANNELS;
        exists = first + own < task.channels;
        number = exists ? first + own : 0;
    }

    int batch, first, lane, own, number;  // `first` of the thread block, `own` counted from there
    bool exists;
};

/* Rows `first` to `first + STATES - 1` of B or C, at the chunk's tokens, as fp32. */
template <typename T, int LANES>
__device__ __forceinline__ void load_tile(float* tile, const T* matrix, const SelectiveScanTask<T>& task, int first,
                                          int token) {
    using Shape = SelectiveShape<LANES>;
    constexpr int PIECES = Shape::TOKENS / PIECE<T>;
    const int64_t batch = Channel<T, LANES>(task).batch;
    matrix += batch * task.state_dim * task.tokens;
#pragma unroll
    for (int i = 0; i < Shape::STATES * PIECES / SELECTIVE_THREADS; ++i) {
        const int number = i * SELECTIVE_THREADS + static_cast<int>(threadIdx.x);
        const int row = number / PIECES, column = number % PIECES * PIECE<T>;
        const int valid = first + row < task.state_dim ? task.tokens - token - column : 0;
        float x[PIECE<T>];
        load_numbers(x, matrix + int64_t{first + row} * task.tokens + token + column, valid);
        float* to = tile + row * Shape::ROW + column / ITEMS * LANE_STRIDE + column % ITEMS;
#pragma unroll
        for (int j = 0; j < PIECE<T>; j += 4) {
            *reinterpret_cast<float4*>(to + j) = make_float4(x[j], x[j + 1], x[j + 2], x[j + 3]);
        }
    }
}

/* A lane's tokens of a chunk. */
struct Items {
    float step[ITEMS];   // dt
    float input[ITEMS];  // dt u
    float y[ITEMS];
    float steps;  // sum of step
};

__device__ __forceinline__ void load_four(float (&x)[4], const float* from) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    x[0] = four.x;
    x[1] = four.y;
    x[2] = four.z;
    x[3] = four.w;
}

/* One state of a channel over a chunk: from `state` before to `state` after it, and its part of y. `A` is that of the
 * state times log2(e); `B` and `C` are at the lane's tokens. */
template <int LANES>
__device__ __forceinline__ void scan_state(Items& items, float A, const float* B, const float* C, float* state,
                                           int lane, bool wanted) {
    float decay[ITEMS], added[ITEMS], end = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; i += 4) {
        float b[4];
        load_four(b, B + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            decay[i + j] = exp2_fast(items.step[i + j] * A);
            added[i + j] = items.input[i + j] * b[j];
            end = fmaf(decay[i + j], end, added[i + j]);
        }
    }
    constexpr int APART = SelectiveShape<LANES>::WARP_CHANNELS;  // the lanes of a channel
    const auto from_before = [](float x, int lanes) {
        return __shfl_up_sync(FULL_WARP, x, static_cast<unsigned>(lanes * APART));
    };
    float span = exp2_fast(items.steps * A);  // better than the product of 16 rounded factors
    const float first = *state;
    if (lane == 0) {
        end = fmaf(span, first, end);
    }
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) {
        const float end_before = from_before(end, step), span_before = from_before(span, step);
        if (lane >= step) {
            end = fmaf(span, end_before, end);
            span *= span_before;
        }
    }
    const float end_before = from_before(end, 1);
    __syncwarp();  // all lanes have read the state: a shuffle orders no memory
    if (lane == LANES - 1) {
        *state = end;
    }
    if (wanted) {
        float x = lane == 0 ? first : end_before;
#pragma unroll
        for (int i = 0; i < ITEMS; i += 4) {
            float c[4];
            load_four(c, C + i);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                x = fmaf(decay[i + j], x, added[i + j]);
                items.y[i + j] = fmaf(c[j], x, items.y[i + j]);
            }
        }
    }
}

template <typename T, int LANES>
__device__ __forceinline__ void begin_chunk(Items& items, const SelectiveScanTask<T>& task, int chunk) {
    const Channel<T, LANES> channel(task);
    const int token = chunk + channel.lane * ITEMS, valid = channel.exists ? task.tokens - token : 0;
    const int64_t at = (int64_t{channel.batch} * task.channels + channel.number) * task.tokens + token;
    const float bias = task.delta_bias ? task.delta_bias[channel.number] : 0.f;
    const float D = task.y && task.D ? task.D[channel.number] : 0.f;
    items.steps = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; i += PIECE<T>) {
        float inputs[PIECE<T>], steps[PIECE<T>];
        load_numbers(inputs, task.u + at + i, valid - i);
        load_numbers(steps, task.delta + at + i, valid - i);
#pragma unroll
        for (int j = 0; j < PIECE<T>; ++j) {
            const float biased = steps[j] + bias;
            const float step = task.delta_softplus ? softplus(biased) : biased;
            items.step[i + j] = i + j < valid ? step : 0;  // a token past the end changes nothing
            items.input[i + j] = items.step[i + j] * inputs[j];
            items.y[i + j] = D * inputs[j];
            items.steps += items.step[i + j];
        }
    }
    if (valid > LANES * ITEMS) {
        const int64_t next = at + LANES * ITEMS;
        prefetch(task.u + next);
        prefetch(task.delta + next);
        if (task.y && task.z) {
            prefetch(task.z + next);
        }
    }
}

template <typename T, int LANES>
__device__ __forceinline__ void finish_chunk(const Items& items, const SelectiveScanTask<T>& task, int chunk) {
    const Channel<T, LANES> channel(task);
    const int token = chunk + channel.lane * ITEMS, valid = channel.exists ? task.tokens - token : 0;
    const int64_t at = (int64_t{channel.batch} * task.channels + channel.number) * task.tokens + token;
#pragma unroll
    for (int i = 0; i < ITEMS; i += PIECE<T>) {
        float out[PIECE<T>], gates[PIECE<T>];
        if (task.z) {
            load_numbers(gates, task.z + at + i, valid - i);
        }
#pragma unroll
        for (int j = 0; j < PIECE<T>; ++j) {
            out[j] = items.y[i + j] * (task.z ? silu(gates[j]) : 1.f);
        }
        store_numbers(task.y + at + i, out, valid - i);
    }
}

/* A thread block has CHANNELS channels of a batch's. */
template <typename T, int LANES>
__global__ void __launch_bounds__(SELECTIVE_THREADS, 4) selective_scan(const SelectiveScanTask<T> task) {
    using Shape = SelectiveShape<LANES>;
    float* const tile_B = reinterpret_cast<float*>(shared_memory());
    float* const tile_C = tile_B + Shape::TILE;
    float* const A = tile_C + Shape::TILE;
    const int row = Shape::row_of_states(task.state_dim);
    float* const states = A + Shape::CHANNELS * row;

    const auto each_state = [&](auto visit) {
        const Channel<T, LANES> of(task);
        const int count = min(Shape::CHANNELS, task.channels - of.first) * task.state_dim;
        const int64_t in_A = int64_t{of.first} * task.state_dim;
        const int64_t in_state = (int64_t{of.batch} * task.channels + of.first) * task.state_dim;
        for (int i = static_cast<int>(threadIdx.x); i < count; i += SELECTIVE_THREADS) {
            visit(i / task.state_dim * row + i % task.state_dim, in_A + i, in_state + i);
        }
    };
    each_state([&](int at, int64_t in_A, int64_t in_state) {
        A[at] = LOG2_E * task.A[in_A];
        states[at] = task.state[in_state];
    });

    for (int chunk = 0; chunk < task.tokens; chunk += Shape::TOKENS) {
        Items items;
        begin_chunk<T, LANES>(items, task, chunk);
        for (int first = 0; first < task.state_dim; first += Shape::STATES) {
            __syncthreads();  // the tiles have been read, and A and the states written
            load_tile<T, LANES>(tile_B, task.B, task, first, chunk);
            if (task.y) {
                load_tile<T, LANES>(tile_C, task.C, task, first, chunk);
            }
            __syncthreads();
            const Channel<T, LANES> channel(task);
            const int states_row = channel.own * row + first, count = min(Shape::STATES, task.state_dim - first);
#pragma unroll 1
            for (int i = 0; i < count; ++i) {
                const int from = i * Shape::ROW + channel.lane * LANE_STRIDE;
                scan_state<LANES>(items, A[states_row + i], tile_B + from, tile_C + from, states + states_row + i,
                                  channel.lane, task.y != nullptr);
            }
        }
        if (task.y) {
            finish_chunk<T, LANES>(items, task, chunk);
        }
    }

    __syncthreads();
    each_state([&](int at, int64_t, int64_t in_state) { task.last_state[in_state] = states[at]; });
}

}  // namespace videossm

#endif
