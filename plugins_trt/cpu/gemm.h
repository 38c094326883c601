/* Products of small matrices, a tile of the result in registers at a time. Columns lie in panels of two
 * vectors. */
#ifndef VIDEOSSM_CPU_GEMM_H
#define VIDEOSSM_CPU_GEMM_H

#include "cpu/vector.h"

namespace videossm {
namespace VIDEOSSM_SET {

constexpr int64_t PANEL = 2 * LANES;
constexpr int TILE_ROWS = LANES == 16 ? 8 : 4;  // two vectors each: half of 32 registers or of 16

template <int HEIGHT, int WIDTH>
struct Tile {
    static constexpr int ROWS = HEIGHT, VECTORS = WIDTH;

    Vector v[ROWS][VECTORS];

    static void load_row(const float* from, Vector (&row)[VECTORS]) {
#pragma GCC unroll 2
        for (int n = 0; n < VECTORS; ++n) {
            row[n] = load(from + n * LANES);
        }
    }

    void load_rows(const float* panel) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            load_row(panel + r * PANEL, v[r]);
        }
    }

    void store_rows(float* panel) const {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
            for (int n = 0; n < VECTORS; ++n) {
                store(panel + r * PANEL + n * LANES, v[r][n]);
            }
        }
    }

    void scale_row(int r, float factor) {
#pragma GCC unroll 2
        for (int n = 0; n < VECTORS; ++n) {
            v[r][n] *= factor;
        }
    }

    void scale(float factor) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            scale_row(r, factor);
        }
    }

    void add_row(int r, float factor, const Vector (&row)[VECTORS]) {
#pragma GCC unroll 2
        for (int n = 0; n < VECTORS; ++n) {
            v[r][n] += factor * row[n];
        }
    }

    /* += a b, where a[r][k] lies at a[r * row_step + k * step] and b is a panel of `depth` rows. */
    void add_product(const float* a, int64_t row_step, int64_t step, const float* b, int64_t depth) {
        for (int64_t k = 0; k < depth; ++k) {
            Vector right[VECTORS];
            load_row(b + k * PANEL, right);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                add_row(r, a[r * row_step + k * step], right);
            }
        }
    }
};

template <int VECTORS, class Work>
inline void cover_rows(int64_t rows, const Work& work) {
    int64_t row = 0;
    for (; row + TILE_ROWS <= rows; row += TILE_ROWS) {
        Tile<TILE_ROWS, VECTORS> tile = {};
        work(tile, row);
    }
    for (; row < rows; ++row) {
        Tile<1, VECTORS> tile = {};
        work(tile, row);
    }
}

/* Calls work(tile of zeros, its first row) for tiles that cover `rows` rows of a panel's first `columns`
 * columns. Sums must have the same order in tiles of all sizes. */
template <class Work>
inline void cover(int64_t rows, int64_t columns, const Work& work) {
    if (columns > LANES) {
        cover_rows<2>(rows, work);
    } else {
        cover_rows<1>(rows, work);
    }
}

}  // namespace VIDEOSSM_SET
}  // namespace videossm

#endif
