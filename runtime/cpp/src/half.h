// Floats of two bytes as bits, for states of a plan in another precision. Rounded to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace videossm::internal {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float from_bfloat16(uint16_t bits) { return float_of(uint32_t{bits} << 16); }

// Of a finite value.
inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float from_float16(uint16_t half) {
    const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = (half >> 10) & 0x1F, fraction = half & 0x3FF;
    if (exponent == 0x1F) {
        return float_of(sign | 0x7F800000 | fraction << 13);
    }
    const float size = exponent ? std::ldexp(static_cast<float>(fraction | 0x400), static_cast<int>(exponent) - 25)
                                : std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -size : size;
}

// Of a finite value; infinity where it is too large.
inline uint16_t to_float16(float value) {
    const auto sign = static_cast<uint16_t>(bits_of(value) >> 31 << 15);
    const float size = std::abs(value);
    if (size >= 65520) {
        return static_cast<uint16_t>(sign | 0x7C00);
    }
    int exponent = 0;
    std::frexp(size, &exponent);
    const int step = size < 0x1p-14f ? -24 : exponent - 11;  // of the last bit; zero has no exponent
    const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, -step)));
    // With a full fraction of 11 bits the exponent's field counts from 0 at 2^-24 steps; a carry moves into it.
    const uint32_t field = step == -24 && steps < 0x400 ? steps : (static_cast<uint32_t>(step + 24) << 10) + steps;
    return static_cast<uint16_t>(sign | field);
}

}  // namespace videossm::internal
