/* Vectors of the instruction set that this file is compiled for, and rows of fp32, fp16 and bf16 in and out
 * of them.
 *
 * kernels.cpp is compiled once for every instruction set, with VIDEOSSM_SET as its name. All code behind it
 * lies in a namespace of that name and calls nothing of the standard library: a linker that met the same
 * inline function in two of these objects could keep the one that this processor cannot run.
 */
#ifndef VIDEOSSM_CPU_VECTOR_H
#define VIDEOSSM_CPU_VECTOR_H

#include <stdint.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace videossm {
namespace VIDEOSSM_SET {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;  // SSE2, NEON, or what the compiler makes of it
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef uint16_t Shorts __attribute__((vector_size(2 * LANES)));

struct Half {
    uint16_t bits;
};
struct Bfloat16 {
    uint16_t bits;
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

inline Vector all(float x) { return x - Vector{}; }

template <class To, class From>
inline To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "bits of another size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

inline Vector load(const float* from) {
    Vector v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Vector v) { __builtin_memcpy(to, &v, sizeof v); }

/* The larger of both; x where x is NaN. */
inline Vector at_least(Vector x, float bound) {
#if defined(__AVX512F__)
    return _mm512_max_ps(all(bound), x);
#elif defined(__AVX__)
    return _mm256_max_ps(all(bound), x);
#else
    return x < bound ? all(bound) : x;
#endif
}

inline Vector at_most(Vector x, float bound) {
#if defined(__AVX512F__)
    return _mm512_min_ps(all(bound), x);
#elif defined(__AVX__)
    return _mm256_min_ps(all(bound), x);
#else
    return x > bound ? all(bound) : x;
#endif
}

inline float to_float(float x) { return x; }

inline float to_float(Bfloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }

inline float to_float(Half x) {
#if defined(__F16C__)
    return _cvtsh_ss(x.bits);
#else
    const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
    if (rest < 0x0400) {  // subnormal: by value, as subnormal bits of a float may be flushed to zero
        return bits_as<float>(bits_as<uint32_t>(static_cast<float>(rest) * 0x1p-24f) | sign);
    }
    const uint32_t rebias = rest < 0x7c00 ? (127u - 15u) << 23 : (255u - 31u) << 23;
    return bits_as<float>(((rest << 13) + rebias) | sign);
#endif
}

inline void from_float(float x, float& to) { to = x; }

/* To the nearest, ties to even. */
inline void from_float(float x, Bfloat16& to) {
    const uint32_t bits = bits_as<uint32_t>(x);
    const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    to.bits = static_cast<uint16_t>((x != x ? bits | 0x400000 : rounded) >> 16);
}

inline void from_float(float x, Half& to) {
#if defined(__F16C__)
    to.bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
    const uint32_t bits = bits_as<uint32_t>(x), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    uint32_t half;
    if (rest > 0x7f800000) {
        half = 0x7e00;
    } else if (rest >= 0x477ff000) {  // 65520 and more round to infinity
        half = 0x7c00;
    } else if (rest < 0x38800000) {  // below 2^-14: a sum with 0.5 leaves multiples of 2^-24 in the mantissa
        half = bits_as<uint32_t>(bits_as<float>(rest) + 0.5f) - bits_as<uint32_t>(0.5f);
    } else {
        half = (rest - ((127u - 15u) << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
    }
    to.bits = static_cast<uint16_t>(half | sign);
#endif
}

inline Vector load_as_float(const float* from) { return load(from); }

inline Vector load_as_float(const Bfloat16* from) {
    Shorts narrow;
    __builtin_memcpy(&narrow, from, sizeof narrow);
    return bits_as<Vector>(__builtin_convertvector(narrow, Integers) << 16);
}

inline Vector load_as_float(const Half* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Vector v;
    for (int i = 0; i < LANES; ++i) {
        v[i] = to_float(from[i]);
    }
    return v;
#endif
}

inline void store_from_float(float* to, Vector v) { store(to, v); }

inline void store_from_float(Bfloat16* to, Vector v) {
    const Integers bits = bits_as<Integers>(v), rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const auto narrow = __builtin_convertvector((v != v ? bits | 0x400000 : rounded) >> 16, Shorts);
    __builtin_memcpy(to, &narrow, sizeof narrow);
}

inline void store_from_float(Half* to, Vector v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < LANES; ++i) {
        from_float(v[i], to[i]);
    }
#endif
}

template <class T>
inline void read_row(const T* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        store(to + i, load_as_float(from + i));
    }
    for (; i < count; ++i) {
        to[i] = to_float(from[i]);
    }
}

template <class T>
inline void write_row(const float* from, int64_t count, T* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        store_from_float(to + i, load(from + i));
    }
    for (; i < count; ++i) {
        from_float(from[i], to[i]);
    }
}

inline void fill(float* to, int64_t count, float value) {
    for (int64_t i = 0; i < count; ++i) {
        to[i] = value;
    }
}

}  // namespace VIDEOSSM_SET
}  // namespace videossm

#endif
