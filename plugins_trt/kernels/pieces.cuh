/* Pieces: as many numbers as a thread loads or stores at once, in four words. */
#ifndef VIDEOSSM_KERNELS_PIECES_CUH
#define VIDEOSSM_KERNELS_PIECES_CUH

#include "kernels/fragments.cuh"

namespace videossm {

template <typename T>
constexpr int QUADS = PIECE<T> / 4;  // of a piece

template <typename T>
__device__ __forceinline__ T from_float(float x) {
    if constexpr (sizeof(T) == 2) {
        return {static_cast<uint16_t>(pack<T>(x, 0))};
    } else {
        return x;
    }
}

__device__ __forceinline__ float to_float(float x) { return x; }

template <typename T>
__device__ __forceinline__ void unpack(float (&x)[PIECE<T>], const uint4& piece) {
    const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 2) {
            x[2 * i] = to_float(T{static_cast<uint16_t>(words[i])});
            x[2 * i + 1] = to_float(T{static_cast<uint16_t>(words[i] >> 16)});
        } else {
            x[i] = __uint_as_float(words[i]);
        }
    }
}

template <typename T>
__device__ __forceinline__ uint4 make_piece(const float (&x)[PIECE<T>]) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 2) {
            words[i] = pack<T>(x[2 * i], x[2 * i + 1]);
        } else {
            words[i] = __float_as_uint(x[i]);
        }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T>
__device__ __forceinline__ uint4 scale_piece(const uint4& piece, float scale) {
    float x[PIECE<T>];
    unpack<T>(x, piece);
#pragma unroll
    for (int i = 0; i < PIECE<T>; ++i) {
        x[i] *= scale;
    }
    return make_piece<T>(x);
}

/* The piece's numbers as operands of a product, in an order that is the same for all pieces. */
template <typename T>
__device__ __forceinline__ void split(Quad<T> (&quads)[QUADS<T>], const uint4& piece) {
    if constexpr (sizeof(T) == 2) {
        quads[0] = {{piece.x, piece.y}};
        quads[1] = {{piece.z, piece.w}};
    } else {
        quads[0] = make_quad<T>(__uint_as_float(piece.x), __uint_as_float(piece.y), __uint_as_float(piece.z),
                                __uint_as_float(piece.w));
    }
}

/* To an even column. */
template <typename T>
__device__ __forceinline__ void store_pair(T* address, float first, float second) {
    if constexpr (sizeof(T) == 2) {
        *reinterpret_cast<uint32_t*>(address) = pack<T>(first, second);
    } else {
        *reinterpret_cast<float2*>(address) = make_float2(first, second);
    }
}

}  // namespace videossm

#endif
