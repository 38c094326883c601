/* The part of GatedDeltaScan that goes from block to block of tokens.
 *
 * A warp has 16 of a head's value columns and all of its key dimension: S^T [16, d_k], in registers. Everything is
 * computed transposed, values by tokens, so that what one product leaves in registers is the next one's operand as it
 * is. Columns of S never meet: warps share the tiles that they load, and nothing else.
 */
#ifndef VIDEOSSM_KERNELS_GATED_DELTA_SCAN_CUH
#define VIDEOSSM_KERNELS_GATED_DELTA_SCAN_CUH

#include "kernels/fragments.cuh"
#include "kernels/gated_delta_tiles.cuh"
#include "kernels/pieces.cuh"

namespace videossm {

/* Warps of a thread block at most, and thread blocks that are to fit a multiprocessor: 16 warps of 128 registers or,
 * with an output, 12 of 168; in fp32 8 of up to 255, as with 168 it spills on sm_120. */
template <bool WANTED>
constexpr int SCAN_WARPS = WANTED ? 4 : 8;
template <typename T, bool WANTED>
constexpr int SCAN_BLOCKS = WANTED && sizeof(T) < sizeof(float) ? 3 : 2;

/* Where a lane's part of the warp's columns begins in [B, H, d_k, d_v]. */
template <int KEY_DIM>
__device__ __forceinline__ int64_t state_corner(int heads, int value_dim) {
    const int thread = recomputed(static_cast<int>(threadIdx.x)), lane = thread % WARP;
    const int warp = static_cast<int>(blockIdx.y * blockDim.x + static_cast<unsigned>(thread)) / WARP;
    return (batch_head_here(heads) * KEY_DIM + 2 * (lane % 4)) * value_dim + warp * SCAN_COLUMNS + lane / 4;
}

/* What is [16, 8 TILES] as operands of a product that sums over its columns. */
template <typename T, int TILES>
__device__ __forceinline__ void make_operands(Rows<T> (&rows)[TILES / 2], const float (&x)[TILES][4]) {
#pragma unroll
    for (int i = 0; i < TILES / 2; ++i) {
        rows[i] = make_rows<T>(x[2 * i], x[2 * i + 1]);
    }
}

/* c += a square^T for a square tile with zeros above its diagonal. */
template <typename T, int TILES>
__device__ __forceinline__ void multiply_lower(float (&c)[TILES][4], const Rows<T> (&a)[TILES / 2], const T* square,
                                               int stride, int lane) {
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
        Quad<T> b[TILES / 2];
        load_rows(b, square, stride, 8 * i, 0, lane);
#pragma unroll
        for (int j = 0; j <= i / 2; ++j) {
            multiply<T>(c[i], a[j], b[j]);
        }
    }
}

/* Each column times its token's factor. */
template <int TILES>
__device__ __forceinline__ void scale_columns(float (&x)[TILES][4], const float* factors, int lane) {
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            x[i][e] *= factors[8 * i + 2 * (lane % 4) + e % 2];
        }
    }
}

/* What the warp holds, [16, C], transposed over its tile of values, where each lane writes what it alone has read, and
 * from there to `output` in pieces. */
template <int STRIDE, typename T, int TILES>
__device__ __forceinline__ void store_output(const float (&x)[TILES][4], T* values, T* output, int64_t row_stride,
                                             int valid, int lane) {
    constexpr int PIECES = SCAN_COLUMNS / PIECE<T>;
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            values[(8 * i + 2 * (lane % 4) + e % 2) * STRIDE + lane / 4 + 8 * (e / 2)] = from_float<T>(x[i][e]);
        }
    }
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < min(valid, 8 * TILES) * PIECES; i += WARP) {
        const int row = i / PIECES, column = i % PIECES * PIECE<T>;
        *reinterpret_cast<uint4*>(output + row * row_stride + column) =
            *reinterpret_cast<const uint4*>(values + row * STRIDE + column);
    }
}

/* Takes the state, S^T, over a block of tokens. */
template <typename T, int KEY_DIM, bool WANTED>
__device__ __forceinline__ void scan_block(float (&state)[KEY_DIM / 8][4], const GatedDeltaTask<T>& task, int block) {
    using Shape = Tiles<T, KEY_DIM, WANTED>;
    constexpr int TILES = BLOCK<T> / 8;
    const int thread = recomputed(static_cast<int>(threadIdx.x)), lane = thread % WARP, warp = thread / WARP;
    const Shape tiles(block, warp);

    float seen[TILES][4] = {}, read[TILES][4] = {};  // S^T k and S^T q
#pragma unroll
    for (int k = 0; k < KEY_DIM / 8; k += 4) {
        const Rows<T> rows[2] = {make_rows<T>(state[k], state[k + 1]), make_rows<T>(state[k + 2], state[k + 3])};
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            Quad<T> b[2];
            load_rows(b, tiles.key, Shape::KEY_STRIDE, 8 * i, 8 * k, lane);
            multiply<T>(seen[i], rows[0], b[0]);
            multiply<T>(seen[i], rows[1], b[1]);
            if constexpr (WANTED) {
                load_rows(b, tiles.query, Shape::KEY_STRIDE, 8 * i, 8 * k, lane);
                multiply<T>(read[i], rows[0], b[0]);
                multiply<T>(read[i], rows[1], b[1]);
            }
        }
    }

    scale_columns(seen, tiles.gates->entered, lane);
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int token = 8 * i + 2 * (lane % 4) + e % 2, column = lane / 4 + 8 * (e / 2);
            seen[i][e] = to_float(tiles.value[token * Shape::VALUE_STRIDE + column]) - seen[i][e];
        }
    }
    Rows<T> rows[TILES / 2];
    make_operands(rows, seen);
    float writes[TILES][4] = {};
    multiply_lower(writes, rows, tiles.inverse, Shape::SQUARE_STRIDE, lane_here());

    if constexpr (WANTED) {
        const int64_t row = row_here(task, block * BLOCK<T>);
        scale_columns(read, tiles.gates->read, lane);
        make_operands(rows, writes);
        multiply_lower(read, rows, tiles.attention, Shape::SQUARE_STRIDE, lane);
        store_output<Shape::VALUE_STRIDE>(read, tiles.value, task.output + value_corner(task, row, warp),
                                          int64_t{task.heads} * task.value_dim, task.tokens - block * BLOCK<T>, lane);
    }

    scale_columns(writes, tiles.gates->left, lane);
    make_operands(rows, writes);
    const float carry = tiles.gates->carry;
    const int column_lane = lane_here();
#pragma unroll
    for (int k = 0; k < KEY_DIM / 8; k += 2) {
        float added[2][4] = {};  // of this block alone: tensor cores round towards 0, which S would gather
#pragma unroll
        for (int i = 0; i < TILES / 2; ++i) {
            Quad<T> b[2];
            load_columns(b, tiles.key, Shape::KEY_STRIDE, 16 * i, 8 * k, column_lane);
            multiply<T>(added[0], rows[i], b[0]);
            multiply<T>(added[1], rows[i], b[1]);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            state[k][e] = fmaf(carry, state[k][e], added[0][e]);
            state[k + 1][e] = fmaf(carry, state[k + 1][e], added[1][e]);
        }
    }
}

/* A thread block has one of B H heads, and as many of its value columns as it has warps for. */
template <typename T, int KEY_DIM, bool WANTED>
__global__ void __launch_bounds__(SCAN_WARPS<WANTED>* WARP, SCAN_BLOCKS<T, WANTED>)
    gated_delta_scan(const GatedDeltaTask<T> task) {
    const int ahead = count_stages(static_cast<int>(blockDim.x) / WARP) - 1;
#pragma unroll 1
    for (int block = 0; block < ahead; ++block) {
        if (block < task.blocks) {
            load_tiles<T, KEY_DIM, WANTED>(task, block);
        }
        commit_copies();
    }

    float state[KEY_DIM / 8][4];
    const float* from = task.state + state_corner<KEY_DIM>(task.heads, task.value_dim);
#pragma unroll
    for (int i = 0; i < KEY_DIM / 8; ++i, from += 8 * task.value_dim) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            state[i][e] = from[e % 2 * task.value_dim + 8 * (e / 2)];
        }
    }

    for (int block = 0; block < task.blocks; ++block) {
        if (ahead == 1) {
            wait_copies<0>();
        } else {
            wait_copies<1>();
        }
        __syncthreads();  // all threads' copies of this block are there, and none still reads the block before
        if (block + ahead < task.blocks) {
            load_tiles<T, KEY_DIM, WANTED>(task, block + ahead);
        }
        commit_copies();
        scan_block<T, KEY_DIM, WANTED>(state, task, block);
    }

    float* to = task.last_state + state_corner<KEY_DIM>(task.heads, task.value_dim);
#pragma unroll
    for (int i = 0; i < KEY_DIM / 8; ++i, to += 8 * task.value_dim) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            to[e % 2 * task.value_dim + 8 * (e / 2)] = state[i][e];
        }
    }
}

}  // namespace videossm

#endif
