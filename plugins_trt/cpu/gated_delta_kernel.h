/* The gated delta rule over one head, BLOCK tokens at a time, as models/scans/gated_delta.py has it.
 *
 * With c_i the sum of the decays from the block's first token to token i, the writes u_i of a block follow by
 * forward substitution, and with them its outputs and the state after it:
 *     u_i = beta_i (v_i - e^(c_i) S^T k_i - sum_{j<i} e^(c_i - c_j) (k_j . k_i) u_j)
 *     o_i = scale (e^(c_i) S^T q_i + sum_{j<=i} e^(c_i - c_j) (k_j . q_i) u_j)
 *     S <- e^(c_last) S + sum_j e^(c_last - c_j) k_j u_j^T
 * The sums c are in double: behind one token of extreme decay the difference of two float sums has lost its
 * digits. Of matrices over pairs of tokens, what lies above the diagonal is never read: nothing of a later
 * token comes into an earlier one, not even multiplied by 0.
 */
#ifndef VIDEOSSM_CPU_GATED_DELTA_KERNEL_H
#define VIDEOSSM_CPU_GATED_DELTA_KERNEL_H

#include "cpu/buffers.h"
#include "cpu/functions.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/transpose.h"

namespace videossm {
namespace VIDEOSSM_SET {

constexpr int64_t BLOCK = 32;        // tokens, a multiple of every PANEL; 64 took 5% longer at d = 128
constexpr double FORGETS = -1000.0;  // all decays below are the same 0, and -infinity would make NaN
constexpr float SMALLEST_NORM = 1e-12f;

/* What the columns of a head share in a block, then the panel at work, then the state. */
struct GatedDeltaBuffers : Buffers {
    GatedDeltaBuffers(int64_t key_dim, int64_t columns, float* workspace) : Buffers(workspace) {
        const int64_t key_lanes = round_up(key_dim, LANES);
        key = take(BLOCK * key_lanes);
        key_panels = take(BLOCK * key_lanes);
        query = take(BLOCK * key_lanes);
        between = take(BLOCK * BLOCK);
        system = take(BLOCK * BLOCK);
        attention = take(BLOCK * BLOCK);
        beta = take(BLOCK);
        entered = take(BLOCK);
        writes = take(BLOCK * PANEL);
        output = take(BLOCK * PANEL);
        state = take(round_up(columns, PANEL) * key_dim);
    }

    float *key, *query;       // [BLOCK][key_dim rounded up to lanes]
    float* key_panels;        // [BLOCK / PANEL][key_dim rounded up to lanes][PANEL]: keys are columns
    float* between;           // [BLOCK][BLOCK]: e^(c_i - c_j)
    float* system;            // [BLOCK][BLOCK]: -beta_i e^(c_i - c_j) (k_j . k_i)
    float* attention;         // [BLOCK][BLOCK]: e^(c_i - c_j) (k_j . q_i)
    float *beta, *entered;    // [BLOCK]; e^(c_i)
    float *writes, *output;   // [BLOCK][PANEL]; the writes are the values first
    float* state;             // [panels][key_dim][PANEL]
};

inline int64_t gated_delta_floats(const videossm_gated_delta_params& params, int64_t columns) {
    return GatedDeltaBuffers(params.key_dim, columns, nullptr).floats;
}

template <class T>
class GatedDelta {
public:
    GatedDelta(const videossm_gated_delta_params& params, const GatedDeltaItem& whose, float* workspace)
        : p(params), item(whose), key_lanes(round_up(params.key_dim, LANES)),
          b(params.key_dim, whose.columns, workspace) {}

    void run() {
        read_state();
        for (int64_t first = 0; first < p.tokens; first += BLOCK) {
            const int64_t rows = smaller(BLOCK, p.tokens - first);
            prepare(first, rows);
            for (int64_t column = 0; column < item.columns; column += PANEL) {
                advance(first, rows, column);
            }
        }
        write_state();
    }

private:
    /* Of [B, T, H]. */
    int64_t token(int64_t t) const { return (item.batch * p.tokens + t) * p.heads + item.head; }

    /* Of [B, H, d_k, d_v], this item's row `i` from `column` on. */
    int64_t state_row(int64_t i, int64_t column) const {
        return ((item.batch * p.heads + item.head) * p.key_dim + i) * p.value_dim + item.first + column;
    }

    /* Of [B, T, H, d_v]. */
    int64_t value_row(int64_t t, int64_t column) const {
        return token(t) * p.value_dim + item.first + column;
    }

    float* panel_row(int64_t i, int64_t column) const { return b.state + column * p.key_dim + i * PANEL; }

    int64_t width(int64_t column) const { return smaller(PANEL, item.columns - column); }

    void read_state() {
        fill(b.state, round_up(item.columns, PANEL) * p.key_dim, 0.0f);
        for (int64_t column = 0; column < item.columns; column += PANEL) {
            for (int64_t i = 0; i < p.key_dim; ++i) {
                read_row(p.state + state_row(i, column), width(column), panel_row(i, column));
            }
        }
    }

    void write_state() const {
        for (int64_t column = 0; column < item.columns; column += PANEL) {
            for (int64_t i = 0; i < p.key_dim; ++i) {
                write_row(panel_row(i, column), width(column), p.last_state + state_row(i, column));
            }
        }
    }

    /* What the columns of a block share. */
    void prepare(int64_t first, int64_t rows) {
        read_gates(first, rows);
        read_vectors(p.key, p.normalize_key, first, rows, b.key);
        for (int64_t row = 0; row < rows; row += LANES) {
            const int64_t count = smaller(LANES, rows - row);
            float* const panel = b.key_panels + row / PANEL * PANEL * key_lanes + row % PANEL;
            read_transposed(b.key + row * key_lanes, key_lanes, count, p.key_dim, panel, PANEL);
        }
        multiply_keys(b.key, rows, [this](int64_t i) { return -b.beta[i]; }, b.system);
        if (p.output) {
            read_vectors(p.query, p.normalize_query, first, rows, b.query);
            multiply_keys(b.query, rows, [](int64_t) { return 1.0f; }, b.attention);
        }
    }

    void read_gates(int64_t first, int64_t rows) {
        double sums[BLOCK] = {}, sum = 0.0;
        for (int64_t i = 0; i < rows; ++i) {
            const double decay = static_cast<double>(p.decay[token(first + i)]);
            sum += (decay < FORGETS ? FORGETS : decay) * LOG2_E_DOUBLE;
            sums[i] = sum;
            b.entered[i] = static_cast<float>(sum);
            b.beta[i] = p.beta[token(first + i)];
        }
        for (int64_t i = 0; i < rows; ++i) {
            float* const row = b.between + i * BLOCK;
            for (int64_t j = 0; j < BLOCK; ++j) {
                row[j] = static_cast<float>(sums[i] - sums[j]);
            }
            exp2_row(row, i + 1);
        }
        exp2_row(b.entered, rows);
    }

    static void exp2_row(float* row, int64_t count) {
        for (int64_t j = 0; j < count; j += LANES) {
            store(row + j, exp2(load(row + j)));
        }
    }

    /* Keys or queries [rows][key_dim], the lanes beyond key_dim 0. */
    void read_vectors(const void* from, bool normalize, int64_t first, int64_t rows, float* to) const {
        for (int64_t i = 0; i < rows; ++i) {
            float* const row = to + i * key_lanes;
            store(row + key_lanes - LANES, Vector{});
            read_row(static_cast<const T*>(from) + token(first + i) * p.key_dim, p.key_dim, row);
            if (normalize) {
                normalize_row(row);
            }
        }
    }

    void normalize_row(float* row) const {
        Vector squares = {};
        for (int64_t i = 0; i < key_lanes; i += LANES) {
            squares += load(row + i) * load(row + i);
        }
        float sum = 0.0f;
        for (int lane = 0; lane < LANES; ++lane) {
            sum += squares[lane];
        }
        const float norm = __builtin_sqrtf(sum), divisor = norm < SMALLEST_NORM ? SMALLEST_NORM : norm;
        for (int64_t i = 0; i < key_lanes; i += LANES) {
            store(row + i, load(row + i) / divisor);
        }
    }

    /* to[i][j] = factor(i) e^(c_i - c_j) (k_j . left_i) for all j <= i. */
    template <class Factor>
    void multiply_keys(const float* left, int64_t rows, const Factor& factor, float* to) const {
        for (int64_t column = 0; column < rows; column += PANEL) {
            const float* const keys = b.key_panels + column * key_lanes;
            cover(rows - column, rows - column, [&](auto tile, int64_t below) {
                const int64_t row = column + below;
                tile.add_product(left + row * key_lanes, key_lanes, 1, keys, p.key_dim);
                for (int r = 0; r < tile.ROWS; ++r) {
                    const int64_t place = (row + r) * BLOCK + column;
                    for (int n = 0; n < tile.VECTORS; ++n) {
                        const Vector decays = load(b.between + place + n * LANES);
                        store(to + place + n * LANES, tile.v[r][n] * decays * factor(row + r));
                    }
                }
            });
        }
    }

    /* All tokens of a block, one panel of columns. */
    void advance(int64_t first, int64_t rows, int64_t column) const {
        float* const state = panel_row(0, column);
        const int64_t columns = width(column);
        for (int64_t i = 0; i < rows; ++i) {
            float* const row = b.writes + i * PANEL;
            fill(row, PANEL, 0.0f);
            read_row(static_cast<const T*>(p.value) + value_row(first + i, column), columns, row);
        }
        cover(rows, columns, [&](auto tile, int64_t row) { substitute(tile, row, state); });
        if (p.output) {
            cover(rows, columns, [&](auto tile, int64_t row) { read_out(tile, row, state); });
            for (int64_t i = 0; i < rows; ++i) {
                T* const row = static_cast<T*>(p.output) + value_row(first + i, column);
                write_row(b.output + i * PANEL, columns, row);
            }
        }
        const float* const left = b.between + (rows - 1) * BLOCK;  // e^(c_last - c_i)
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = 0; j < PANEL; ++j) {
                b.writes[i * PANEL + j] *= left[i];
            }
        }
        const float carry = b.entered[rows - 1];
        cover(p.key_dim, columns, [&](auto tile, int64_t row) {
            tile.load_rows(state + row * PANEL);
            tile.scale(carry);
            tile.add_product(b.key + row, 1, key_lanes, b.writes, rows);
            tile.store_rows(state + row * PANEL);
        });
    }

    /* The writes of ROWS tokens, given all before. */
    template <class Tile>
    void substitute(Tile& tile, int64_t row, const float* state) const {
        tile.add_product(b.key + row * key_lanes, key_lanes, 1, state, p.key_dim);
#pragma GCC unroll 8
        for (int r = 0; r < tile.ROWS; ++r) {
            const float beta = b.beta[row + r], stale = -b.entered[row + r];
#pragma GCC unroll 2
            for (int n = 0; n < tile.VECTORS; ++n) {
                const Vector value = load(b.writes + (row + r) * PANEL + n * LANES);
                tile.v[r][n] = beta * (value + stale * tile.v[r][n]);
            }
        }
        const float* const system = b.system + row * BLOCK;
        tile.add_product(system, BLOCK, 1, b.writes, row);
#pragma GCC unroll 8
        for (int r = 1; r < tile.ROWS; ++r) {
#pragma GCC unroll 8
            for (int j = 0; j < r; ++j) {
                tile.add_row(r, system[r * BLOCK + row + j], tile.v[j]);
            }
        }
        tile.store_rows(b.writes + row * PANEL);
    }

    /* The outputs of ROWS tokens. */
    template <class Tile>
    void read_out(Tile& tile, int64_t row, const float* state) const {
        tile.add_product(b.query + row * key_lanes, key_lanes, 1, state, p.key_dim);
#pragma GCC unroll 8
        for (int r = 0; r < tile.ROWS; ++r) {
            tile.scale_row(r, b.entered[row + r]);
        }
        const float* const attention = b.attention + row * BLOCK;
        tile.add_product(attention, BLOCK, 1, b.writes, row);
#pragma GCC unroll 8
        for (int j = 0; j < tile.ROWS; ++j) {
            Vector write[Tile::VECTORS];
            tile.load_row(b.writes + (row + j) * PANEL, write);
#pragma GCC unroll 8
            for (int r = j; r < tile.ROWS; ++r) {
                tile.add_row(r, attention[r * BLOCK + row + j], write);
            }
        }
        tile.scale(p.scale);
        tile.store_rows(b.output + row * PANEL);
    }

    const videossm_gated_delta_params& p;
    const GatedDeltaItem& item;
    const int64_t key_lanes;
    GatedDeltaBuffers b;
};

}  // namespace VIDEOSSM_SET
}  // namespace videossm

#endif
