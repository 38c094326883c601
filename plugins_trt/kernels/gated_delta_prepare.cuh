/* The part of GatedDeltaScan that is parallel over blocks of tokens. A warp takes a block: its keys are read once, from
 * global memory to registers, where they are both operands of the products k_i . k_j. */
#ifndef VIDEOSSM_KERNELS_GATED_DELTA_PREPARE_CUH
#define VIDEOSSM_KERNELS_GATED_DELTA_PREPARE_CUH

#include "kernels/fragments.cuh"
#include "kernels/gated_delta.h"
#include "kernels/pieces.cuh"

namespace videossm {

constexpr int PREPARE_WARPS = 4;  // of a thread block; they share nothing

template <typename T>
struct PrepareShared {
    float system[BLOCK<T>][BLOCK<T> + ROW_PADDING];  // A
    float2 decay[BLOCK<T>];                          // log2 of g_0 + ... + g_i, and what fp32 rounds off
    float beta[BLOCK<T>];
    float key_scale[BLOCK<T>];    // r of Gates
    float query_scale[BLOCK<T>];  // scale / |query|
};

/* A block's tokens are rows of 4 PIECES pieces. Of eight rows, lane 4 g + t takes pieces t, t + 4, ... of row g. */
template <typename T>
__device__ __forceinline__ uint4 load_piece(const T* row, bool valid) {
    return valid ? *reinterpret_cast<const uint4*>(row) : make_uint4(0, 0, 0, 0);
}

template <typename T>
__device__ __forceinline__ float sum_of_squares(const uint4& piece, float sum) {
    float x[PIECE<T>];
    unpack<T>(x, piece);
#pragma unroll
    for (int i = 0; i < PIECE<T>; ++i) {
        sum = fmaf(x[i], x[i], sum);
    }
    return sum;
}

/* 1 / max(|row|, 1e-12), from the sums of the four lanes that have the row. */
__device__ __forceinline__ float inverse_norm(float sum) {
    sum += __shfl_xor_sync(FULL_WARP, sum, 1);
    sum += __shfl_xor_sync(FULL_WARP, sum, 2);
    return 1 / sqrtf(fmaxf(sum, 1e-24f));
}

/* Sums of the block's decays into `shared.decay`, for exponents of 2: lane i has token i's. Summed in double and kept
 * in two floats, since the difference of two sums would lose its digits behind one token of extreme decay. Below 2^-369
 * a decay is 0 anyway; the bound keeps infinities out of the differences, and lets NaN pass. */
template <typename T>
__device__ __forceinline__ float2 sum_decays(PrepareShared<T>& shared, float decay) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    double sum = (decay < -256 ? -256 : decay) * 1.4426950408889634;
#pragma unroll
    for (int step = 1; step < BLOCK<T>; step *= 2) {
        const double before = __shfl_up_sync(FULL_WARP, sum, static_cast<unsigned>(step));
        sum += lane >= step ? before : 0;
    }
    const float high = static_cast<float>(sum);
    const float2 both = make_float2(high, static_cast<float>(sum - high));
    if (lane < BLOCK<T>) {
        shared.decay[lane] = both;
    }
    return both;
}

/* e^(g_{j+1} + ... + g_i) for sums of a token i and a token j <= i. */
__device__ __forceinline__ float decay_between(float2 i, float2 j) { return exp2f((i.x - j.x) + (i.y - j.y)); }

/* Column `lane` of (I + system)^-1 by substitution, which stays exact to rounding also where keys correlate. */
template <typename T>
__device__ __forceinline__ void solve_column(float (&x)[BLOCK<T>], const PrepareShared<T>& shared) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
#pragma unroll
    for (int i = 0; i < BLOCK<T>; ++i) {
        float sums[4] = {i == lane ? 1.f : 0.f, 0, 0, 0};  // four, so that additions need not wait for each other
#pragma unroll
        for (int j = 0; j < i; j += 4) {
            const float4 row = *reinterpret_cast<const float4*>(&shared.system[i][j]);
            const float a[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (j + k < i) {
                    sums[k] = fmaf(-a[k], x[j + k], sums[k]);
                }
            }
        }
        x[i] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}

/* Products of the block's rows in fp32, tiles of 16 by 8: `keys` k_i . k_j and `queries` q_i . k_j, of which those
 * above the diagonal are left 0. And the rows' squares, summed up over the pieces of a lane. */
template <typename T>
struct Products {
    static constexpr int TILES = BLOCK<T> / 8;

    float keys[TILES / 2][TILES][4] = {}, queries[TILES / 2][TILES][4] = {};
    float key_squares[TILES] = {}, query_squares[TILES] = {};

    template <bool WANTED>
    __device__ __forceinline__ void add(const uint4 (&key)[TILES], const uint4 (&query)[TILES]) {
        Quad<T> k[TILES][QUADS<T>], q[TILES][QUADS<T>];
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            key_squares[i] = sum_of_squares<T>(key[i], key_squares[i]);
            split<T>(k[i], key[i]);
            if constexpr (WANTED) {
                query_squares[i] = sum_of_squares<T>(query[i], query_squares[i]);
                split<T>(q[i], query[i]);
            }
        }
#pragma unroll
        for (int quad = 0; quad < QUADS<T>; ++quad) {
#pragma unroll
            for (int i = 0; i < TILES / 2; ++i) {
#pragma unroll
                for (int j = 0; j <= 2 * i + 1; ++j) {
                    multiply<T>(keys[i][j], Rows<T>{k[2 * i][quad], k[2 * i + 1][quad]}, k[j][quad]);
                    if constexpr (WANTED) {
                        multiply<T>(queries[i][j], Rows<T>{q[2 * i][quad], q[2 * i + 1][quad]}, k[j][quad]);
                    }
                }
            }
        }
    }
};

template <typename T, int KEY_DIM, bool WANTED>
__global__ void __launch_bounds__(PREPARE_WARPS* WARP) gated_delta_prepare(const GatedDeltaTask<T> task) {
    constexpr int C = BLOCK<T>, TILES = C / 8, PIECES = KEY_DIM / PIECE<T> / 4;
    const int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    const int g = lane / 4, t = lane % 4;
    const int number = static_cast<int>(blockIdx.x) * PREPARE_WARPS + warp;  // of the block of tokens
    if (number >= task.batch_heads * task.blocks) {
        return;
    }
    PrepareShared<T>& shared = reinterpret_cast<PrepareShared<T>*>(shared_memory())[warp];
    Record<T>& record = task.records[number];
    const int first_token = number % task.blocks * C, tokens = task.tokens - first_token;
    const int64_t first = task.row(number / task.blocks, first_token);

    const int64_t gate = first + int64_t{lane} * task.heads;
    const bool gated = lane < C && lane < tokens;  // a token past the end decays and writes nothing
    const float2 decay = sum_decays(shared, gated ? task.decay[gate] : 0.f);
    const float beta = gated ? task.beta[gate] : 0.f;
    if (lane < C) {
        shared.beta[lane] = beta;
    }

    const int64_t corner = (first + int64_t{g} * task.heads) * KEY_DIM + t * PIECE<T>;
    const int64_t tile_rows = int64_t{8} * task.heads * KEY_DIM;
    const auto at = [&](int tile, int piece) { return corner + tile * tile_rows + piece * 4 * PIECE<T>; };
    float scales[TILES];
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
        scales[i] = 1;
        if (task.normalized_key) {
            float sum = 0;
            for (int piece = 0; piece < PIECES; ++piece) {
                sum = sum_of_squares<T>(load_piece(task.key + at(i, piece), 8 * i + g < tokens), sum);
            }
            scales[i] = inverse_norm(sum);
        }
    }
    Products<T> products;
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
        uint4 key[TILES], query[TILES];
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            const bool valid = 8 * i + g < tokens;
            key[i] = load_piece(task.key + at(i, piece), valid);
            if (task.normalized_key) {
                key[i] = scale_piece<T>(key[i], scales[i]);
                if (valid) {
                    *reinterpret_cast<uint4*>(task.normalized_key + at(i, piece)) = key[i];
                }
            }
            if constexpr (WANTED) {
                query[i] = load_piece(task.query + at(i, piece), valid);
            }
        }
        products.template add<WANTED>(key, query);
    }
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
        const bool scaled = task.normalize_key && !task.normalized_key;
        const float key_norm = inverse_norm(products.key_squares[i]);
        const float query_norm = inverse_norm(products.query_squares[i]);
        if (t == 0) {
            shared.key_scale[8 * i + g] = scaled ? key_norm : 1;
            shared.query_scale[8 * i + g] = task.scale * (task.normalize_query ? query_norm : 1);
        }
    }
    __syncwarp();

#pragma unroll
    for (int i = 0; i < TILES / 2; ++i) {
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
            float attention[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int to = 16 * i + g + 8 * (e / 2), from = 8 * j + 2 * t + e % 2;
                const bool sees = to >= from;  // else the exponent may be positive
                const float between = sees ? decay_between(shared.decay[to], shared.decay[from]) : 0.f;
                const float factor = between * shared.key_scale[from];
                const float system = shared.beta[to] * shared.key_scale[to] * factor * products.keys[i][j][e];
                shared.system[to][from] = to > from ? system : 0.f;
                attention[e] = sees ? shared.query_scale[to] * factor * products.queries[i][j][e] : 0.f;
            }
            if constexpr (WANTED) {
                store_pair<T>(&record.attention[16 * i + g][8 * j + 2 * t], attention[0], attention[1]);
                store_pair<T>(&record.attention[16 * i + g + 8][8 * j + 2 * t], attention[2], attention[3]);
            }
        }
    }
    __syncwarp();

    if (lane < C) {
        const float entered = exp2f(decay.x), scale = shared.key_scale[lane];
        record.gates.entered[lane] = scale * entered;
        record.gates.left[lane] = scale * decay_between(shared.decay[C - 1], decay);
        record.gates.read[lane] = shared.query_scale[lane] * entered;
        if (lane == C - 1) {
            record.gates.carry = entered;
        }
        float column[C];
        solve_column(column, shared);
#pragma unroll
        for (int i = 0; i < C; ++i) {
            record.inverse[i][lane] = from_float<T>(column[i] * beta);
        }
    }
}

}  // namespace videossm

#endif
