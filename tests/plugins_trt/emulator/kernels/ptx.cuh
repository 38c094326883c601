/* The twin of plugins_trt/kernels/ptx.cuh for the emulator: the same functions as the PTX manual describes the
 * instructions. Where it leaves open how tensor cores round, this is as coarse as any that has been measured. */
#ifndef VIDEOSSM_KERNELS_PTX_CUH
#define VIDEOSSM_KERNELS_PTX_CUH

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/types.cuh"

namespace videossm {

inline unsigned char* shared_memory() { return emulator::place().shared; }

inline int recomputed(int x) { return x; }

/* A float's upper bits, rounded to the nearest and, in between, to the even. */
inline uint32_t round_off(uint32_t bits, int dropped) {
    const uint32_t half = 1u << (dropped - 1), odd = bits >> dropped & 1;
    return (bits + half - 1 + odd) >> dropped;
}

inline uint16_t half_bits(float x) {
    const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    uint32_t half;
    if (rest > 0x7f800000) {
        half = 0x7fff;
    } else if (rest >= 0x477ff000) {  // rounds to 2^16
        half = 0x7c00;
    } else if (rest < 0x38800000) {  // below 2^-14: a multiple of 2^-24
        half = static_cast<uint32_t>(std::lrint(std::ldexp(__uint_as_float(rest), 24)));
    } else {
        half = round_off(rest - 0x38000000, 13);
    }
    return static_cast<uint16_t>(sign | half);
}

inline uint16_t bfloat16_bits(float x) {
    const uint32_t bits = __float_as_uint(x);
    return static_cast<uint16_t>(std::isnan(x) ? 0x7fff : round_off(bits, 16));
}

inline float to_float(Half x) {
    const int exponent = x.bits >> 10 & 0x1f, mantissa = x.bits & 0x3ff;
    const float sign = x.bits & 0x8000 ? -1.f : 1.f;
    if (exponent == 0x1f) {
        return mantissa ? NAN : sign * INFINITY;
    }
    const int units = exponent ? mantissa + 0x400 : mantissa;
    return sign * std::ldexp(static_cast<float>(units), exponent ? exponent - 25 : -24);
}

inline float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

template <typename T>
uint32_t pack(float low, float high);

template <>
inline uint32_t pack<Half>(float low, float high) {
    return half_bits(low) | static_cast<uint32_t>(half_bits(high)) << 16;
}

template <>
inline uint32_t pack<BFloat16>(float low, float high) {
    return bfloat16_bits(low) | static_cast<uint32_t>(bfloat16_bits(high)) << 16;
}

inline float upper_bits(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000); }

/* A unit of the last place too low, always: a device may be off by two, now this way and now that. */
inline float exp2_fast(float x) {
    const float value = std::exp2(x);
    if (value < 0x1p-126f) {
        return 0;
    }
    return x == 0 || std::isinf(value) ? value : std::nextafterf(value, 0);
}

inline float cut_off(double x) {
    const float nearest = static_cast<float>(x);
    return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafterf(nearest, 0) : nearest;
}

/* The sum as tensor cores take it: no addend counts below 2^-24 of the largest's power of two, and all are cut off. */
template <size_t N>
float sum_on_tensor_core(const double (&addends)[N]) {
    double largest = 0, sum = 0;
    for (const double x : addends) {
        largest = std::max(largest, std::fabs(x));
        sum += x;
    }
    if (!std::isfinite(sum) || largest == 0) {
        return static_cast<float>(sum);
    }
    const int lost = std::ilogb(largest) - 24;
    const double scale = std::ldexp(1.0, -lost);
    int64_t units = 0;
    for (const double x : addends) {
        units += static_cast<int64_t>(x * scale);
    }
    return cut_off(std::ldexp(static_cast<double>(units), lost));
}

/* What a lane brings to a product of [16, K] and [K, 8], and takes from it. */
template <int K>
struct Product {
    float* c;
    float a[K / 2];  // (row, column) as a_place says
    float b[K / 4];
};

/* Row g or g + 8, and column, of number i of lane 4 g + t. */
template <int K>
void a_place(int i, int g, int t, int& row, int& column) {
    if (K == 16) {
        row = g + 8 * (i / 2 % 2);
        column = 2 * t + i % 2 + 8 * (i / 4);
    } else {
        row = g + 8 * (i % 2);
        column = t + 4 * (i / 2);
    }
}

template <int K>
int b_row(int i, int t) {
    return K == 16 ? 2 * t + i % 2 + 8 * (i / 2) : t + 4 * i;
}

template <int K>
void multiply_matrices(const emulator::Lanes& lanes) {
    double a[16][K], b[K][8];
    for (int lane = 0; lane < emulator::LANES; ++lane) {
        const auto& mine = *static_cast<const Product<K>*>(lanes[static_cast<size_t>(lane)]);
        for (int i = 0; i < K / 2; ++i) {
            int row, column;
            a_place<K>(i, lane / 4, lane % 4, row, column);
            a[row][column] = mine.a[i];
        }
        for (int i = 0; i < K / 4; ++i) {
            b[b_row<K>(i, lane % 4)][lane / 4] = mine.b[i];
        }
    }
    for (int lane = 0; lane < emulator::LANES; ++lane) {
        float* c = static_cast<const Product<K>*>(lanes[static_cast<size_t>(lane)])->c;
        for (int e = 0; e < 4; ++e) {
            double addends[K + 1];
            for (int k = 0; k < K; ++k) {
                addends[k] = a[lane / 4 + 8 * (e / 2)][k] * b[k][2 * (lane % 4) + e % 2];
            }
            addends[K] = c[e];
            c[e] = sum_on_tensor_core(addends);
        }
    }
}

template <typename T>
void multiply_pairs(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Product<16> mine = {c, {}, {}};
    for (int i = 0; i < 8; ++i) {
        mine.a[i] = to_float(T{static_cast<uint16_t>(a[i / 2] >> 16 * (i % 2))});
    }
    for (int i = 0; i < 4; ++i) {
        mine.b[i] = to_float(T{static_cast<uint16_t>(b[i / 2] >> 16 * (i % 2))});
    }
    emulator::exchange("mma.m16n8k16", &mine, multiply_matrices<16>);
}

inline void multiply_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    Product<8> mine = {c,
                       {upper_bits(a[0]), upper_bits(a[1]), upper_bits(a[2]), upper_bits(a[3])},
                       {upper_bits(b[0]), upper_bits(b[1])}};
    emulator::exchange("mma.m16n8k8", &mine, multiply_matrices<8>);
}

struct LoadedMatrices {
    const void* row;
    uint32_t* matrices;
};

template <bool TRANSPOSED>
void load_four_matrices(const emulator::Lanes& lanes) {
    const auto number = [&](int matrix, int row, int column) {
        const auto* source = static_cast<const LoadedMatrices*>(lanes[static_cast<size_t>(8 * matrix + row)]);
        return uint32_t{static_cast<const uint16_t*>(source->row)[column]};
    };
    for (int lane = 0; lane < emulator::LANES; ++lane) {
        const auto* mine = static_cast<const LoadedMatrices*>(lanes[static_cast<size_t>(lane)]);
        if (reinterpret_cast<uintptr_t>(mine->row) % 16 != 0) {
            std::abort();
        }
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
            mine->matrices[i] = TRANSPOSED ? number(i, 2 * t, g) | number(i, 2 * t + 1, g) << 16
                                           : number(i, g, 2 * t) | number(i, g, 2 * t + 1) << 16;
        }
    }
}

inline void load_matrices(uint32_t (&matrices)[4], const void* row) {
    LoadedMatrices mine = {row, matrices};
    emulator::exchange("ldmatrix", &mine, load_four_matrices<false>);
}

inline void load_matrices_transposed(uint32_t (&matrices)[4], const void* row) {
    LoadedMatrices mine = {row, matrices};
    emulator::exchange("ldmatrix.trans", &mine, load_four_matrices<true>);
}

inline void copy_async(void* shared, const void* global, bool valid) { emulator::copy_async(shared, global, valid); }
inline void commit_copies() { emulator::commit_copies(); }

template <int GROUPS>
void wait_copies() {
    emulator::wait_copies(GROUPS);
}

inline void prefetch(const void*) {}

}  // namespace videossm

#endif
