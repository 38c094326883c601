/* Blocks of tokens in shared memory, for gated_delta_scan: where they lie, and the copies that bring them there. */
#ifndef VIDEOSSM_KERNELS_GATED_DELTA_TILES_CUH
#define VIDEOSSM_KERNELS_GATED_DELTA_TILES_CUH

#include "kernels/gated_delta.h"
#include "kernels/ptx.cuh"

namespace videossm {

constexpr int SCAN_COLUMNS = 16;  // of a warp

/* Blocks of tokens in shared memory: one in use, the others on their way. Few warps get through a block sooner than
 * memory answers; many would have no room for more, in the 99 KiB that a thread block has on sm_86, 89 and 120. */
constexpr __host__ __device__ int count_stages(int warps) { return warps <= 2 ? 3 : 2; }

/* A block of tokens in shared memory, each row ROW_PADDING longer than its numbers. */
template <typename T, int KEY_DIM, bool WANTED>
struct Tiles {
    static constexpr int C = BLOCK<T>;
    static constexpr int KEY_STRIDE = KEY_DIM + ROW_PADDING, SQUARE_STRIDE = C + ROW_PADDING;
    static constexpr int VALUE_STRIDE = SCAN_COLUMNS + ROW_PADDING;
    static constexpr int KEYS = C * KEY_STRIDE, SQUARE = C * SQUARE_STRIDE, VALUES = C * VALUE_STRIDE;  // numbers

    static constexpr __host__ __device__ int bytes(int warps) {
        const int numbers = (WANTED ? 2 : 1) * (KEYS + SQUARE) + warps * VALUES;
        return static_cast<int>(sizeof(T)) * numbers + static_cast<int>(sizeof(Gates<T>));
    }

    static constexpr __host__ __device__ int scan_bytes(int warps) { return count_stages(warps) * bytes(warps); }

    /* Those of a block, whose turn comes round with the stages. */
    __device__ __forceinline__ Tiles(int block, int warp) {
        const int warps = static_cast<int>(blockDim.x) / WARP;
        const int stage = warps <= 2 ? block % count_stages(2) : block % count_stages(3);  // constants: no division
        gates = reinterpret_cast<Gates<T>*>(shared_memory() + stage * bytes(warps));
        key = reinterpret_cast<T*>(gates + 1);
        inverse = key + KEYS;
        query = inverse + SQUARE;
        attention = query + KEYS;
        value = (WANTED ? attention : inverse) + SQUARE + warp * VALUES;
    }

    Gates<T>* gates;
    T *key, *inverse;
    T *query, *attention;  // where an output is wanted
    T* value;              // the warp's columns
};

/* The lane, and below what else says where a thread is, computed anew by each phase of a block: kept, it would take
 * registers from the state. */
__device__ __forceinline__ int lane_here() { return recomputed(static_cast<int>(threadIdx.x)) % WARP; }

/* The grid is (H, column groups, B): neither the head nor a token's row in [B, T, H, .] takes a division. */
__device__ __forceinline__ int64_t batch_head_here(int heads) {
    return int64_t{recomputed(static_cast<int>(blockIdx.z))} * heads + recomputed(static_cast<int>(blockIdx.x));
}

template <typename T>
__device__ __forceinline__ int64_t row_here(const GatedDeltaTask<T>& task, int token) {
    const int batch = recomputed(static_cast<int>(blockIdx.z)), head = recomputed(static_cast<int>(blockIdx.x));
    return (int64_t{batch} * task.tokens + token) * task.heads + head;
}

/* ROWS rows of PIECES pieces to a tile, by a number of warps' threads; zeros from row `valid` on. A thread stays in its
 * column: all that a copy then needs are three additions. */
template <int ROWS, int PIECES, typename T>
__device__ __forceinline__ void copy_rows(T* tile, int stride, const T* rows, int64_t row_stride, int valid, int thread,
                                          int threads) {
    static_assert(WARP % PIECES == 0, "a warp copies whole rows");
    const int column = thread % PIECES * PIECE<T>, first = thread / PIECES, step = threads / PIECES;
    T* to = tile + first * stride + column;
    const T* from = rows + first * row_stride + column;
    const int64_t from_step = step * row_stride;
#pragma unroll 4
    for (int row = first; row < ROWS; row += step) {
        copy_async(to, from, row < valid);
        to += step * stride;
        from += from_step;
    }
}

/* Of token `row` in [B, T, H, .], the warp's columns in [B, T, H, d_v]. */
template <typename T>
__device__ __forceinline__ int64_t value_corner(const GatedDeltaTask<T>& task, int64_t row, int warp) {
    const int warps = static_cast<int>(blockDim.x) / WARP;
    return row * task.value_dim + (static_cast<int>(blockIdx.y) * warps + warp) * SCAN_COLUMNS;
}

/* Starts the copies of a block of tokens. */
template <typename T, int KEY_DIM, bool WANTED>
__device__ __forceinline__ void load_tiles(const GatedDeltaTask<T>& task, int block) {
    using Shape = Tiles<T, KEY_DIM, WANTED>;
    constexpr int C = BLOCK<T>, KEYS = KEY_DIM / PIECE<T>, SQUARE = C / PIECE<T>, VALUES = SCAN_COLUMNS / PIECE<T>;
    const int thread = recomputed(static_cast<int>(threadIdx.x)), warp = thread / WARP;
    const int threads = static_cast<int>(blockDim.x), valid = task.tokens - block * C;
    const int64_t row = row_here(task, block * C);
    const int64_t key_stride = int64_t{task.heads} * KEY_DIM, value_stride = int64_t{task.heads} * task.value_dim;
    const Record<T>& record = task.records[batch_head_here(task.heads) * task.blocks + block];
    const Shape tiles(block, warp);
    copy_rows<C, KEYS>(tiles.key, Shape::KEY_STRIDE, task.key + row * KEY_DIM, key_stride, valid, thread, threads);
    copy_rows<C, SQUARE>(tiles.inverse, Shape::SQUARE_STRIDE, record.inverse[0], C, C, thread, threads);
    if constexpr (WANTED) {
        copy_rows<C, KEYS>(tiles.query, Shape::KEY_STRIDE, task.query + row * KEY_DIM, key_stride, valid, thread,
                           threads);
        copy_rows<C, SQUARE>(tiles.attention, Shape::SQUARE_STRIDE, record.attention[0], C, C, thread, threads);
    }
    copy_rows<C, VALUES>(tiles.value, Shape::VALUE_STRIDE, task.value + value_corner(task, row, warp), value_stride,
                         valid, thread % WARP, WARP);
    constexpr int GATES = static_cast<int>(sizeof(Gates<T>)) / PIECE_BYTES;
    static_assert(GATES <= WARP, "a piece a thread");
    if (thread < GATES) {
        copy_async(reinterpret_cast<uint4*>(tiles.gates) + thread,
                   reinterpret_cast<const uint4*>(&record.gates) + thread, true);
    }
}

}  // namespace videossm

#endif
