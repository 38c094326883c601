#ifndef VIDEOSSM_KERNELS_SELECTIVE_SCAN_MATH_CUH
#define VIDEOSSM_KERNELS_SELECTIVE_SCAN_MATH_CUH

#include "kernels/pieces.cuh"

namespace videossm {

constexpr float LOG2_E = 1.44269504f;

/* log(1 + e^x) = max(x, 0) + log(1 + e^-|x|); the second by a polynomial, within 3 units of the last place also where
 * e^-|x| is far below 1. Interpolates log(1 + e) / e at Chebyshev's points of [0, 1]. */
__device__ __forceinline__ float softplus(float x) {
    constexpr float FACTORS[] = {0.00512610212f, -0.0290740646f, 0.0775160866f, -0.136022476f, 0.190768807f,
                                 -0.24835399f,   0.333181217f,   -0.49999445f,  0.999999966f};
    const float e = exp2_fast(-fabsf(x) * LOG2_E);
    float sum = FACTORS[0];
#pragma unroll
    for (int i = 1; i < 9; ++i) {
        sum = fmaf(sum, e, FACTORS[i]);
    }
    return fmaf(sum, e, fmaxf(x, 0));
}

/* z / (1 + e^-z). */
__device__ __forceinline__ float silu(float z) { return __fdividef(z, 1 + exp2_fast(-z * LOG2_E)); }

/* PIECE numbers from `from`, of which `valid` are there and the others are 0. */
template <typename T>
__device__ __forceinline__ void load_numbers(float (&x)[PIECE<T>], const T* from, int valid) {
    if (valid >= PIECE<T> && reinterpret_cast<uintptr_t>(from) % PIECE_BYTES == 0) {
        unpack<T>(x, *reinterpret_cast<const uint4*>(from));
    } else {
#pragma unroll
        for (int i = 0; i < PIECE<T>; ++i) {
            x[i] = i < valid ? to_float(from[i]) : 0.f;
        }
    }
}

template <typename T>
__device__ __forceinline__ void store_numbers(T* to, const float (&x)[PIECE<T>], int valid) {
    if (valid >= PIECE<T> && reinterpret_cast<uintptr_t>(to) % PIECE_BYTES == 0) {
        *reinterpret_cast<uint4*>(to) = make_piece<T>(x);
    } else {
#pragma unroll
        for (int i = 0; i < PIECE<T>; ++i) {
            if (i < valid) {
                to[i] = from_float<T>(x[i]);
            }
        }
    }
}

}  // namespace videossm

#endif
