/* Products on tensor cores in one form for all types: c [16, 8] += a [16, 16] b [16, 8] in fp32.
 *
 * Of each row of a and each column of b, which run along the 16 that are summed over, lane 4 g + t holds the four
 * numbers 2t, 2t + 1, 2t + 8, 2t + 9: a Quad. For 16 bits that is the layout of mma.m16n8k16. fp32 takes two
 * mma.m16n8k8, whose columns t and t + 4 stand for numbers 2t and 2t + 1 of a Quad, then for 2t + 8 and 2t + 9: a sum
 * does not care in which order it is taken. So what two tiles c hold side by side is an operand a as it is.
 */
#ifndef VIDEOSSM_KERNELS_FRAGMENTS_CUH
#define VIDEOSSM_KERNELS_FRAGMENTS_CUH

#include "kernels/ptx.cuh"

namespace videossm {

/* Of 16 bits: two pairs. */
template <typename T>
struct Quad {
    uint32_t pairs[2];
};

/* Of fp32: what tf32 keeps of the numbers, and the rest. A product of two big and the two products of big and small are
 * exact to 2^-20, where tf32 alone has 2^-10. `big` is cut off by a mask: rounding it, cvt.rna.tf32, takes five
 * instructions for one more bit. Of `small` the tensor cores cut off what they do not read. */
template <>
struct Quad<float> {
    float big[4];
    float small[4];
};

template <typename T>
__device__ __forceinline__ Quad<T> make_quad(float x0, float x1, float x2, float x3) {
    if constexpr (sizeof(T) == 2) {
        return {{pack<T>(x0, x1), pack<T>(x2, x3)}};
    } else {
        Quad<float> quad;
        const float x[4] = {x0, x1, x2, x3};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            quad.big[i] = upper_bits(x[i]);
            quad.small[i] = x[i] - quad.big[i];
        }
        return quad;
    }
}

/* Rows g and g + 8 of an operand a. */
template <typename T>
struct Rows {
    Quad<T> top, bottom;
};

/* Columns 0 to 7 from c0 and 8 to 15 from c1. */
template <typename T>
__device__ __forceinline__ Rows<T> make_rows(const float (&c0)[4], const float (&c1)[4]) {
    return {make_quad<T>(c0[0], c0[1], c1[0], c1[1]), make_quad<T>(c0[2], c0[3], c1[2], c1[3])};
}

template <typename T>
__device__ __forceinline__ void multiply(float (&c)[4], const Rows<T>& a, const Quad<T>& b) {
    const uint32_t rows[4] = {a.top.pairs[0], a.bottom.pairs[0], a.top.pairs[1], a.bottom.pairs[1]};
    multiply_pairs<T>(c, rows, b.pairs);
}

template <>
__device__ __forceinline__ void multiply(float (&c)[4], const Rows<float>& a, const Quad<float>& b) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const float big[4] = {a.top.big[i], a.bottom.big[i], a.top.big[i + 1], a.bottom.big[i + 1]};
        const float small[4] = {a.top.small[i], a.bottom.small[i], a.top.small[i + 1], a.bottom.small[i + 1]};
        const float b_big[2] = {b.big[i], b.big[i + 1]}, b_small[2] = {b.small[i], b.small[i + 1]};
        multiply_tf32(c, small, b_big);
        multiply_tf32(c, big, b_small);
        multiply_tf32(c, big, b_big);
    }
}

/* The operand b for `c += a tile^T`: rows n .. n + 7 of a tile in shared memory, at columns k .. k + 16 N - 1.
 * `stride`: numbers from row to row. */
template <int N, typename T>
__device__ __forceinline__ void load_rows(Quad<T> (&b)[N], const T* tile, int stride, int n, int k, int lane) {
    if constexpr (sizeof(T) == 2) {
        static_assert(N == 2, "one ldmatrix.x4 fills two operands");
        uint32_t matrices[4];
        load_matrices(matrices, tile + (n + lane % 8) * stride + k + 8 * (lane / 8));
        b[0] = {{matrices[0], matrices[1]}};
        b[1] = {{matrices[2], matrices[3]}};
    } else {
        const T* row = tile + (n + lane / 4) * stride + k + 2 * (lane % 4);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float2 left = *reinterpret_cast<const float2*>(row + 16 * i);
            const float2 right = *reinterpret_cast<const float2*>(row + 16 * i + 8);
            b[i] = make_quad<T>(left.x, left.y, right.x, right.y);
        }
    }
}

/* Two operands b for `c += a tile`: rows k .. k + 15, at columns n .. n + 7 and n + 8 .. n + 15. */
template <typename T>
__device__ __forceinline__ void load_columns(Quad<T> (&b)[2], const T* tile, int stride, int k, int n, int lane) {
    if constexpr (sizeof(T) == 2) {
        uint32_t matrices[4];
        load_matrices_transposed(matrices, tile + (k + lane % 16) * stride + n + 8 * (lane / 16));
        b[0] = {{matrices[0], matrices[1]}};
        b[1] = {{matrices[2], matrices[3]}};
    } else {
        const T* corner = tile + (k + 2 * (lane % 4)) * stride + n + lane / 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const T* column = corner + 8 * i;
            b[i] = make_quad<T>(column[0], column[stride], column[8 * stride], column[9 * stride]);
        }
    }
}

}  // namespace videossm

#endif
