/* Mamba-1's scan with a channel in each lane, CHUNK tokens at a time.
 *
 * Time is the innermost dimension of the tensors, so all are transposed on their way in and out: u, delta, z
 * and y for LANES channels at a time, B and C once for all channels of the item. The states of LANES channels
 * stay in registers over a chunk, STATES of them at a time.
 */
#ifndef VIDEOSSM_CPU_SELECTIVE_SCAN_KERNEL_H
#define VIDEOSSM_CPU_SELECTIVE_SCAN_KERNEL_H

#include "cpu/buffers.h"
#include "cpu/functions.h"
#include "cpu/kernels.h"
#include "cpu/transpose.h"

namespace videossm {
namespace VIDEOSSM_SET {

constexpr int64_t CHUNK = 64;                 // tokens
constexpr int STATES = LANES == 16 ? 16 : 8;  // half of the registers

struct SelectiveScanBuffers : Buffers {
    SelectiveScanBuffers(const videossm_selective_scan_params& p, int64_t channels, float* workspace)
        : Buffers(workspace) {
        const int64_t state_lanes = round_up(p.state_dim, LANES), all_channels = round_up(channels, LANES);
        u = take(CHUNK * LANES);
        step = take(CHUNK * LANES);
        write = take(CHUNK * LANES);
        y = take(CHUNK * LANES);
        B = take(CHUNK * state_lanes);
        C = take(CHUNK * state_lanes);
        A = take(p.state_dim * all_channels);
        state = take(p.state_dim * all_channels);
        D = take(all_channels);
        delta_bias = take(all_channels);
    }

    float *u, *step, *write, *y;  // [CHUNK][LANES]: dt and dt u; of the channels at work
    float *B, *C;                 // [CHUNK][state_dim rounded up to lanes]
    float *A, *state;             // [channels / LANES][state_dim][LANES]; A times log2(e)
    float *D, *delta_bias;        // [channels]
};

inline int64_t selective_scan_floats(const videossm_selective_scan_params& params, int64_t channels) {
    return SelectiveScanBuffers(params, channels, nullptr).floats;
}

template <class T>
class SelectiveScan {
public:
    SelectiveScan(const videossm_selective_scan_params& params, const SelectiveScanItem& whose,
                  float* workspace)
        : p(params), item(whose), state_lanes(round_up(params.state_dim, LANES)),
          b(params, whose.channels, workspace) {}

    void run() {
        read_channels();
        for (int64_t first = 0; first < p.tokens; first += CHUNK) {
            const int64_t count = smaller(CHUNK, p.tokens - first);
            read_columns(p.B, first, count, b.B);
            if (p.y) {  // else C is 0
                read_columns(p.C, first, count, b.C);
            }
            for (int64_t channel = 0; channel < item.channels; channel += LANES) {
                scan_chunk(channel, first, count);
            }
        }
        write_state();
    }

private:
    int64_t lanes(int64_t channel) const { return smaller(LANES, item.channels - channel); }

    /* Of [B, D, ...], for `channel` of the item. */
    int64_t row(int64_t channel) const { return item.batch * p.channels + item.first + channel; }

    /* What does not change with the token. */
    void read_channels() {
        fill(b.C, CHUNK * state_lanes, 0.0f);
        fill(b.D, round_up(item.channels, LANES), 0.0f);
        fill(b.delta_bias, round_up(item.channels, LANES), 0.0f);
        if (p.D && p.y) {
            read_row(p.D + item.first, item.channels, b.D);
        }
        if (p.delta_bias) {
            read_row(p.delta_bias + item.first, item.channels, b.delta_bias);
        }
        const int64_t n = p.state_dim;
        for (int64_t channel = 0; channel < item.channels; channel += LANES) {
            const int64_t count = lanes(channel);
            float* const A = b.A + channel * n;
            read_transposed(p.A + (item.first + channel) * n, n, count, n, A, LANES);
            for (int64_t i = 0; i < n * LANES; ++i) {
                A[i] *= LOG2_E;
            }
            read_transposed(p.state + row(channel) * n, n, count, n, b.state + channel * n, LANES);
        }
    }

    void write_state() const {
        const int64_t n = p.state_dim;
        for (int64_t channel = 0; channel < item.channels; channel += LANES) {
            write_transposed(b.state + channel * n, lanes(channel), n, p.last_state + row(channel) * n, n);
        }
    }

    /* B or C [B, N, T]: `count` tokens from `first` on, a token a row. */
    void read_columns(const void* from, int64_t first, int64_t count, float* to) const {
        for (int64_t n = 0; n < p.state_dim; n += LANES) {
            const int64_t place = (item.batch * p.state_dim + n) * p.tokens + first;
            const T* const rows = static_cast<const T*>(from) + place;
            read_transposed(rows, p.tokens, smaller(LANES, p.state_dim - n), count, to + n, state_lanes);
        }
    }

    void scan_chunk(int64_t channel, int64_t first, int64_t count) const {
        const int64_t place = row(channel) * p.tokens + first, width = lanes(channel);
        read_transposed(static_cast<const T*>(p.u) + place, p.tokens, width, count, b.u, LANES);
        read_transposed(static_cast<const T*>(p.delta) + place, p.tokens, width, count, b.step, LANES);
        const Vector bias = load(b.delta_bias + channel), skip = load(b.D + channel);
        for (int64_t t = 0; t < count * LANES; t += LANES) {
            Vector step = load(b.step + t) + bias;
            if (p.delta_softplus) {
                step = softplus(step);
            }
            const Vector u = load(b.u + t);
            store(b.step + t, step);
            store(b.write + t, step * u);
            store(b.y + t, skip * u);
        }
        scan_states<STATES>(channel, 0, count);
        if (p.y) {
            if (p.z) {
                gate(static_cast<const T*>(p.z) + place, channel, count);
            }
            write_transposed(b.y, width, count, static_cast<T*>(p.y) + place, p.tokens);
        }
    }

    /* Adds to y what the states from `n` on give: COUNT at a time, and the rest by smaller powers of two. */
    template <int COUNT>
    void scan_states(int64_t channel, int64_t n, int64_t count) const {
        for (; n + COUNT <= p.state_dim; n += COUNT) {
            float* const state = b.state + channel * p.state_dim + n * LANES;
            const float* const A = b.A + channel * p.state_dim + n * LANES;
            Vector x[COUNT];
            for (int i = 0; i < COUNT; ++i) {
                x[i] = load(state + i * LANES);
            }
            for (int64_t t = 0; t < count; ++t) {
                const Vector step = load(b.step + t * LANES), write = load(b.write + t * LANES);
                const float *const B = b.B + t * state_lanes + n, *const C = b.C + t * state_lanes + n;
                Vector y = load(b.y + t * LANES);
#pragma GCC unroll 16
                for (int i = 0; i < COUNT; ++i) {
                    x[i] = exp2(step * load(A + i * LANES)) * x[i] + write * B[i];
                    y += x[i] * C[i];
                }
                store(b.y + t * LANES, y);
            }
            for (int i = 0; i < COUNT; ++i) {
                store(state + i * LANES, x[i]);
            }
        }
        if constexpr (COUNT > 1) {
            scan_states<COUNT / 2>(channel, n, count);
        }
    }

    /* y <- y silu(z) */
    void gate(const T* z, int64_t channel, int64_t count) const {
        read_transposed(z, p.tokens, lanes(channel), count, b.u, LANES);
        for (int64_t t = 0; t < count * LANES; t += LANES) {
            store(b.y + t, load(b.y + t) * silu(load(b.u + t)));
        }
    }

    const videossm_selective_scan_params& p;
    const SelectiveScanItem& item;
    const int64_t state_lanes;
    SelectiveScanBuffers b;
};

}  // namespace VIDEOSSM_SET
}  // namespace videossm

#endif
