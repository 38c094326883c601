/* exp, softplus and silu of vectors, in fp32. Polynomials by Remez' algorithm for the relative error. */
#ifndef VIDEOSSM_CPU_FUNCTIONS_H
#define VIDEOSSM_CPU_FUNCTIONS_H

#include "cpu/vector.h"

namespace videossm {
namespace VIDEOSSM_SET {

constexpr float LOG2_E = 1.44269504f;
constexpr double LOG2_E_DOUBLE = 1.4426950408889634;
constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;  // the first is exact in few bits
constexpr float ROUND = 0x1.8p23f;       // x + ROUND has round(x) in its last bits
constexpr float SMALLEST_EXPONENT = -126.0f, LARGEST_EXPONENT = 127.4f;  // of normal results

/* 2^(n + r) for -1/2 <= r <= 1/2 and `shifted` = n + ROUND; the polynomial is exact at r = 0 and errs by
 * 3e-9. */
inline Vector exp2_parts(Vector shifted, Vector r) {
    Vector p = all(1.559467816e-4f);
    p = p * r + 1.34066439e-3f;
    p = p * r + 9.617692973e-3f;
    p = p * r + 5.550310551e-2f;
    p = p * r + 2.402265278e-1f;
    p = p * r + 6.93147215e-1f;
    p = p * r + 1.0f;
    return bits_as<Vector>(bits_as<Integers>(p) + (bits_as<Integers>(shifted) << 23));
}

/* 2^x, relative error below 2e-7; 2^-126 (1e-38) for all smaller x. */
inline Vector exp2(Vector x) {
    x = at_most(at_least(x, SMALLEST_EXPONENT), LARGEST_EXPONENT);
    const Vector shifted = x + ROUND;
    return exp2_parts(shifted, x - (shifted - ROUND));
}

/* e^x with the same error: the product with log2(e) is not rounded to the bits of a large x. */
inline Vector exp(Vector x) {
    x = at_most(at_least(x, SMALLEST_EXPONENT / LOG2_E), LARGEST_EXPONENT / LOG2_E);
    const Vector shifted = x * LOG2_E + ROUND, n = shifted - ROUND;
    const Vector r = (x - n * LN2_HIGH) - n * LN2_LOW;
    return exp2_parts(shifted, r * LOG2_E);
}

/* log(1 + t) for 0 <= t <= 1, relative error below 3e-7: 2 artanh(s) with s = t / (2 + t) <= 1/3. */
inline Vector log1p(Vector t) {
    const Vector s = t / (2.0f + t), y = s * s;
    Vector p = all(2.81783351e-1f);
    p = p * y + 2.796060271e-1f;
    p = p * y + 4.002491029e-1f;
    p = p * y + 6.666631468e-1f;
    p = p * y + 2.0f;
    return s * p;
}

/* log(1 + e^x), accurate also where it is close to 0. */
inline Vector softplus(Vector x) {
    const Vector magnitude = x < 0.0f ? -x : x;
    return at_least(x, 0.0f) + log1p(exp(-magnitude));
}

/* x / (1 + e^-x) */
inline Vector silu(Vector x) { return x / (1.0f + exp(-x)); }

}  // namespace VIDEOSSM_SET
}  // namespace videossm

#endif
