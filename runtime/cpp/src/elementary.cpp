#include "elementary.h"

#include <cmath>

namespace videossm::internal {
namespace {

// ln 2 in two parts. The first has 32 bits, so that its product with an exponent is exact.
constexpr double kLn2High = 0x1.62e42fee00000p-1;
constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
constexpr double kHalfPi = 0x1.921fb54442d18p+0;
constexpr double kSqrtHalf = 0x1.6a09e667f3bcdp-1;

constexpr double factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }  // exact up to 18
constexpr double sign(int k) { return k % 2 ? -1 : 1; }
constexpr double sine_term(int k) { return sign(k) / factorial(2 * k + 1); }
constexpr double cosine_term(int k) { return sign(k) / factorial(2 * k); }

constexpr double kAtanh[] = {1.0,      1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9, 1.0 / 11,
                             1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21};
constexpr double kSin[] = {sine_term(0), sine_term(1), sine_term(2), sine_term(3), sine_term(4),
                           sine_term(5), sine_term(6), sine_term(7), sine_term(8)};
constexpr double kCos[] = {cosine_term(0), cosine_term(1), cosine_term(2), cosine_term(3), cosine_term(4),
                           cosine_term(5), cosine_term(6), cosine_term(7), cosine_term(8)};

// By Horner's rule, from the last coefficient to the first.
template <int N>
double polynomial(const double (&coefficients)[N], double x) {
    double value = coefficients[N - 1] * x;
    for (int k = N - 2; k > 0; --k) {
        value += coefficients[k];
        value *= x;
    }
    return value + coefficients[0];
}

}  // namespace

double exact_log(double x) {
    int exponent = 0;
    double mantissa = std::frexp(x, &exponent);
    if (mantissa < kSqrtHalf) {  // sqrt(0.5) to sqrt(2)
        mantissa = 2.0 * mantissa;
        --exponent;
    }
    const double ratio = (mantissa - 1.0) / (mantissa + 1.0);  // log(m) = 2 atanh((m - 1) / (m + 1))
    const double rest = exponent * kLn2Low + 2.0 * ratio * polynomial(kAtanh, ratio * ratio);
    return exponent * kLn2High + rest;
}

CosSin exact_cos_sin(double turns) {
    const double quarters = 4.0 * turns;
    const double nearest = std::nearbyint(quarters);
    const double angle = (quarters - nearest) * kHalfPi;  // the difference is exact
    const double square = angle * angle;
    const double cosine = polynomial(kCos, square), sine = angle * polynomial(kSin, square);
    const int quadrant = static_cast<int>(nearest);
    const bool across = quadrant & 1;  // cosine and sine change places
    return {(across ? sine : cosine) * (1.0 - ((quadrant + 1) & 2)), (across ? cosine : sine) * (1.0 - (quadrant & 2))};
}

}  // namespace videossm::internal
