"""Logarithm, cosine and sine against 50 digits, and to the last bit against what was once computed."""

from __future__ import annotations

import hashlib
from decimal import Decimal, localcontext

import numpy as np
import pytest

from videossm.runtime.elementary import cos_sin, log
from videossm.runtime.noise import philox4x32

PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
ULPS = 3
SHA256 = {  # of the results for `uniform()`, little-endian
    "log": "52eb9cd5a831699ca99f9f8a2930d18edc9d17eeafb11a37412d96c4ed05b610",
    "cos": "dc124581dc781ba1ad4310076c38450be72ffb1271328f7afe20a212a05c9dfe",
    "sin": "1d9c2f7c95ef2980f230acbc64724da76c42939a2d47684fd92e24b735901fbe",
}


def uniform(count=100_000):
    """As noise draws them: (w + 0.5) / 2**32, `w` a random word; at the start the smallest and the largest."""
    counter = np.zeros((4, count // 4), np.uint32)
    counter[0] = np.arange(count // 4)
    words = philox4x32(counter, (1, 2)).reshape(-1)
    words[:4] = 0, 1, 2**32 - 2, 2**32 - 1
    return (words + 0.5) * 2.0**-32


def edges():
    """Around each eighth of a turn, where cosine and sine are 0 or change their formulas; and a few between."""
    words = np.array([k * 2**29 + d for k in range(9) for d in range(-3, 3) if 0 <= k * 2**29 + d < 2**32])
    return np.concatenate([(words + 0.5) * 2.0**-32, uniform()[:400]])


def exact_sin(turns):
    """Sine of 2 pi `turns` by its series."""
    x = 2 * PI * turns
    term, total, k = x, x, 1
    while abs(term) > Decimal("1e-45"):
        term *= -x * x / ((k + 1) * (k + 2))
        total, k = total + term, k + 2
    return total


def ulps(got, x, exact):
    """The largest error of `got`, in units in the last place."""
    with localcontext() as context:
        context.prec = 55
        return max(
            float(abs(Decimal(float(value)) - expected) / Decimal(float(np.spacing(abs(float(expected))))))
            for value, expected in zip(got, map(exact, map(Decimal, x.tolist())), strict=True)
        )


def test_logarithm():
    x = np.concatenate([edges(), [np.sqrt(0.5), np.nextafter(np.sqrt(0.5), 1), 1.5, 2.0**-1000, 1e300]])
    assert ulps(log(x), x, Decimal.ln) <= ULPS
    assert log(np.array([1.0])) == 0


def test_cosine_and_sine():
    turns = edges()
    cosine, sine = cos_sin(turns)
    assert ulps(sine, turns, exact_sin) <= ULPS
    assert ulps(cosine, turns, lambda x: exact_sin(x + Decimal("0.25"))) <= ULPS


@pytest.mark.parametrize("name", SHA256)
def test_every_processor_has_the_same_bits(name):
    x = uniform()
    values = {"log": log(x), **dict(zip(("cos", "sin"), cos_sin(x), strict=True))}[name]
    assert hashlib.sha256(values.astype("<f8").tobytes()).hexdigest() == SHA256[name]
