from __future__ import annotations

import numpy as np
import pytest

from videossm.calib.report.growth import END_CHUNKS, growth, mean

ROUNDING = 1e-9


def reference(series: list[float | None], end: int) -> tuple[float, float, float]:
    """(mean of the first, mean of the last, slope of the least-squares line by its definition)."""
    chunks, values = zip(*((chunk, value) for chunk, value in enumerate(series) if value is not None), strict=True)
    x, y = np.array(chunks, np.float64), np.array(values, np.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return y[:end].mean(), y[-end:].mean(), slope


@pytest.mark.parametrize(("chunks", "undefined", "end"), [(230, 0, END_CHUNKS), (230, 6, END_CHUNKS), (21, 3, 9)])
def test_against_the_definition(chunks: int, undefined: int, end: int) -> None:
    values = 0.02 + 1e-5 * np.arange(chunks) + np.random.default_rng(0).normal(0, 1e-3, chunks)
    series = [None] * undefined + [float(value) for value in values[undefined:]]
    first, last, slope = reference(series, end)
    found = growth(series)
    assert found is not None and found.chunks == end
    assert (found.first, found.last) == pytest.approx((first, last), rel=ROUNDING)
    assert found.slope_per_100_chunks == pytest.approx(100 * slope, rel=1e-6)
    assert found.ratio == pytest.approx(last / first, rel=ROUNDING)


def test_a_straight_line() -> None:
    found = growth([0.01 + 0.0001 * chunk for chunk in range(200)])
    assert found is not None
    assert found.slope_per_100_chunks == pytest.approx(0.01)
    assert found.ratio == pytest.approx((0.01 + 0.0001 * 174.5) / (0.01 + 0.0001 * 24.5))


@pytest.mark.parametrize("series", [[], [0.1], [None, None, 0.1], [None]])
def test_too_few_values(series: list[float | None]) -> None:
    assert growth(series) is None


def test_no_error_at_all() -> None:
    found = growth([0.0] * 10)
    assert found is not None and (found.ratio, found.slope_per_100_chunks) == (None, pytest.approx(0))


def test_mean_of_what_is_defined() -> None:
    assert mean([None, 1.0, 2.0]) == 1.5
    assert mean([None]) is None
