/* Rows of a tensor to vectors across rows. */
#ifndef VIDEOSSM_CPU_TRANSPOSE_H
#define VIDEOSSM_CPU_TRANSPOSE_H

#include <utility>

#include "cpu/vector.h"

namespace videossm {
namespace VIDEOSSM_SET {

/* Swaps the upper right and the lower left half of 2 x 2 blocks of HALF x HALF; a and b are HALF rows apart.
 */
template <int HALF, int... LANE>
inline void swap_halves(Vector& a, Vector& b, std::integer_sequence<int, LANE...>) {
    const Vector above = __builtin_shufflevector(a, b, (LANE & HALF ? LANES + LANE - HALF : LANE)...);
    b = __builtin_shufflevector(a, b, (LANE & HALF ? LANES + LANE : LANE + HALF)...);
    a = above;
}

template <int HALF>
inline void transpose_square(Vector (&rows)[LANES]) {
    if constexpr (HALF > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) {
            if ((i & HALF) == 0) {
                swap_halves<HALF>(rows[i], rows[i + HALF], std::make_integer_sequence<int, LANES>());
            }
        }
        transpose_square<HALF / 2>(rows);
    }
}

/* to[column][row] = from[row][column] for `rows` <= LANES rows `stride` elements apart; to[column] has LANES
 * floats and starts `step` floats after the one before; the lanes beyond `rows` are 0. */
template <class T>
inline void read_transposed(const T* from, int64_t stride, int64_t rows, int64_t columns, float* to,
                            int64_t step) {
    int64_t column = 0;
    for (; column + LANES <= columns; column += LANES) {
        Vector square[LANES];
        for (int row = 0; row < LANES; ++row) {
            square[row] = row < rows ? load_as_float(from + row * stride + column) : Vector{};
        }
        transpose_square<LANES / 2>(square);
        for (int i = 0; i < LANES; ++i) {
            store(to + (column + i) * step, square[i]);
        }
    }
    for (; column < columns; ++column) {
        for (int64_t row = 0; row < LANES; ++row) {
            to[column * step + row] = row < rows ? to_float(from[row * stride + column]) : 0.0f;
        }
    }
}

/* The way back: to[row][column] = from[column][row]; from[column] starts LANES floats after the one before.
 */
template <class T>
inline void write_transposed(const float* from, int64_t rows, int64_t columns, T* to, int64_t stride) {
    int64_t column = 0;
    for (; column + LANES <= columns; column += LANES) {
        Vector square[LANES];
        for (int i = 0; i < LANES; ++i) {
            square[i] = load(from + (column + i) * LANES);
        }
        transpose_square<LANES / 2>(square);
        for (int row = 0; row < rows; ++row) {
            store_from_float(to + row * stride + column, square[row]);
        }
    }
    for (; column < columns; ++column) {
        for (int64_t row = 0; row < rows; ++row) {
            from_float(from[column * LANES + row], to[row * stride + column]);
        }
    }
}

}  // namespace VIDEOSSM_SET
}  // namespace videossm

#endif
