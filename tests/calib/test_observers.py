"""Observers of a stream against plain NumPy over all of its values at once, and against onnxruntime's calibrator."""

from __future__ import annotations

import contextlib
import io
import math

import ml_dtypes
import numpy as np
import pytest
from onnxruntime.quantization.calibrate import HistogramCollector

from videossm.calib.observers import (
    BINS,
    ENTROPY_BINS,
    FORMATS,
    METHODS,
    EntropyObserver,
    MaxObserver,
    MseObserver,
    NonFiniteError,
    ObserverError,
    PercentileObserver,
    make_observer,
    weight_scales,
)

SAMPLES = 100_000
TOLERANCE = {  # relative, of a scale, but for the first
    "percentile": 2 / BINS,  # of the largest value: a bin, where the range is twice that
    "entropy": 0.02,
    "mse": 0.02,
    "weight error": 0.01,  # of the squared error, not of the scale
}
LARGEST = {"int8": 127.0, "fp8": 448.0}
ALL = pytest.mark.parametrize("method", METHODS)
PRECISIONS = pytest.mark.parametrize("precision", LARGEST)


def outliers(random):
    values = random.standard_normal(SAMPLES)
    values[: SAMPLES // 1000] *= 8
    return values


DISTRIBUTIONS = {
    "gaussian": lambda random: random.standard_normal(SAMPLES),
    "laplace": lambda random: random.laplace(size=SAMPLES),
    "student-t": lambda random: random.standard_t(4, SAMPLES),
    "outliers": outliers,
}


def drawn(distribution, seed=0):
    values = DISTRIBUTIONS[distribution](np.random.default_rng(seed))
    return values.astype(np.float32)


def computed(observer, *batches):
    for batch in batches:
        observer.collect(batch)
    return observer.compute()


def nearest_codes(values, precision):
    """The grid's nearest code to each of `values` [K], in float64, by searching all of its codes."""
    if precision == "int8":
        codes = np.arange(-127.0, 128.0)
    else:
        codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
        codes = np.unique(codes[np.isfinite(codes)])
    above = np.searchsorted(codes, values).clip(1, codes.size - 1)
    below = codes[above - 1]
    return np.where(values - below < codes[above] - values, below, codes[above])


@PRECISIONS
def test_formats_round_to_the_nearest_code(precision):
    values = np.random.default_rng(0).uniform(-1.2, 1.2, 5000) * LARGEST[precision] * 0.01
    actual = FORMATS[precision].quantize_dequantize(values, 0.01)
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, nearest_codes(values / 0.01, precision) * 0.01, rtol=1e-12)


@PRECISIONS
def test_formats_keep_the_type_and_take_a_scale_a_column(precision):
    values = drawn("gaussian")[:300].reshape(100, 3)
    scales = np.array([0.01, 0.02, 0.003])
    actual = FORMATS[precision].quantize_dequantize(values, scales)
    assert actual.dtype == np.float32
    for column, scale in enumerate(scales):
        expected = nearest_codes(values[:, column] / np.float32(scale), precision) * scale
        np.testing.assert_allclose(actual[:, column], expected, rtol=1e-6)


def test_halves_go_to_the_even_code():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5])
    assert FORMATS["int8"].quantize_dequantize(values, 1.0).tolist() == [0, 2, 2, 0, -2]
    assert FORMATS["fp8"].quantize_dequantize(np.array([17.0, 19.0]), 1.0).tolist() == [16, 20]


@PRECISIONS
def test_what_lies_beyond_the_largest_code_is_clipped(precision):
    largest = LARGEST[precision]
    values = np.array([1e30, -1e30, largest + 40], np.float32)
    assert FORMATS[precision].quantize_dequantize(values, 1.0).tolist() == [largest, -largest, largest]


def gelu_like(random):
    """What GELU makes of normal values: from -0.17 on, most of it within a little of 0."""
    values = 2 * random.standard_normal(SAMPLES)
    return (values / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))).astype(np.float32)


def through(codes, values):
    """`values`, quantised to int8 by `codes` and back, in float64."""
    quantised = np.clip(np.rint(values / codes.scale) + codes.zero_point, -128, 127)
    return (quantised - codes.zero_point) * codes.scale


@pytest.mark.parametrize(("low", "amax"), [(-0.17, 5.0), (-0.17, 0.6), (0.0, 3.0), (-1e-3, 1e4)])
def test_one_sided_codes_cover_the_range(low, amax):
    """Both ends within half a step, with all 256 codes between them; 0 is a code."""
    codes = FORMATS["int8"].codes(amax, low)
    ends = np.array([low, amax])
    np.testing.assert_allclose(through(codes, ends), ends, rtol=0, atol=codes.scale / 2 * (1 + 1e-9))
    found = np.rint(ends / codes.scale) + codes.zero_point
    assert np.abs(found - [-128, 127]).max() <= 1 and found[1] - found[0] >= 254
    assert isinstance(codes.zero_point, int) and -128 <= codes.zero_point <= 127
    assert through(codes, np.zeros(1)) == 0


@PRECISIONS
def test_symmetric_codes_have_no_zero_point(precision):
    assert FORMATS[precision].codes(3.0, None) == (3.0 / LARGEST[precision], 0)


def test_one_sided_codes_have_a_third_of_the_error():
    values = gelu_like(np.random.default_rng(0)).astype(np.float64)
    low, amax = values.min(), np.abs(values).max()
    assert FORMATS["int8"].is_one_sided(low, amax)
    errors = [np.mean((through(FORMATS["int8"].codes(amax, given), values) - values) ** 2) for given in (low, None)]
    assert 3 * errors[0] <= errors[1]


@pytest.mark.parametrize(
    ("low", "amax", "expected"),
    [
        (-0.17, 5.0, True),
        (0.0, 1.0, True),
        (2.0, 3.0, True),
        (-0.34, 1.0, False),
        (-1.0, 1.0, False),
        (-5.0, 5.0, False),
    ],
)
def test_which_tensors_are_one_sided(low, amax, expected):
    """Fewer than a third of the symmetric codes, on either side of 0, would be for what is below it."""
    assert FORMATS["int8"].is_one_sided(low, amax) == expected
    assert not FORMATS["fp8"].is_one_sided(low, amax), "its codes are symmetric, and have no zero point"


@ALL
def test_low_is_the_smallest_value(method):
    values, observer = drawn("laplace"), make_observer(method, "int8", "x")
    for batch in np.array_split(values, 7):
        observer.collect(batch)
    assert observer.low == values.min()
    observer.reset()
    observer.collect(np.abs(values))
    assert observer.low == np.abs(values).min()


def test_mse_of_one_sign_against_brute_force():
    """The clipped range is searched with the codes that it will have, of which there are twice as many."""
    values = gelu_like(np.random.default_rng(0))
    actual = computed(MseObserver("x", "int8"), *np.array_split(values, 7))
    low, exact = float(values.min()), values.astype(np.float64)

    def squared(amax):
        return np.mean((through(FORMATS["int8"].codes(amax, low), exact) - exact) ** 2)

    expected = min(np.abs(values).max() * np.linspace(0.02, 1, 300), key=squared)
    assert actual == pytest.approx(expected, rel=TOLERANCE["mse"])
    symmetric = min(
        np.abs(values).max() * np.linspace(0.02, 1, 300), key=lambda amax: squared_error(values, amax, "int8")
    )
    assert actual >= symmetric, "finer codes clip less"
    assert squared(actual) <= squared_error(values, symmetric, "int8") / 3


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_max(distribution):
    values = drawn(distribution)
    assert computed(MaxObserver("x"), *np.array_split(values, 7)) == np.abs(values).max()


@pytest.mark.parametrize("percentile", [50, 99, 99.99, 100])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_percentile(distribution, percentile):
    values = drawn(distribution)
    actual = computed(PercentileObserver("x", percentile), *np.array_split(values, 7))
    magnitudes = np.abs(values)
    expected = np.percentile(magnitudes, percentile, method="inverted_cdf")
    assert expected <= actual <= expected + TOLERANCE["percentile"] * magnitudes.max()


@pytest.mark.parametrize("percentile", [0, -1, 100.5, math.nan])
def test_no_such_percentile(percentile):
    with pytest.raises(ObserverError, match=r"^percentile: got .*, expected one above 0, at most 100; "):
        PercentileObserver("x", percentile)


@PRECISIONS
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mse_against_brute_force(distribution, precision):
    """Every value itself, on a finer grid of ranges."""
    values = drawn(distribution)
    actual = computed(MseObserver("x", precision), *np.array_split(values, 7))
    candidates = np.abs(values).max() * np.linspace(0.02, 1, 300)
    expected = min(candidates, key=lambda amax: squared_error(values, amax, precision))
    assert actual == pytest.approx(expected, rel=TOLERANCE["mse"])


def squared_error(values, amax, precision):
    codes = values * (LARGEST[precision] / amax)
    if precision == "int8":
        codes = np.round(codes).clip(-127, 127)
    else:
        codes = codes.clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return float(np.mean((codes * (amax / LARGEST[precision]) - values) ** 2, dtype=np.float64))


def test_mse_clips_lone_outliers_of_many():
    """One of either sign: with one alone, codes on one side would be for it."""
    values = np.random.default_rng(0).uniform(-1, 1, 1_000_000).astype(np.float32)
    values[:2] = 4.0, -4.0
    assert computed(MseObserver("x", "int8"), values) < 1.2


@pytest.mark.parametrize("distribution", ["gaussian", "laplace", "student-t"])  # a second each
def test_entropy_against_onnxruntime(distribution):
    """It gets the mirror image as well, and the range is a power of two, so that both have the same counts."""
    values = drawn(distribution)
    values *= np.nextafter(np.float32(8), np.float32(0)) / np.abs(values).max()
    actual = computed(EntropyObserver("x", "int8"), *np.array_split(values, 7))
    collector = HistogramCollector("entropy", True, 2 * ENTROPY_BINS, 256, 99.99, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": np.concatenate([values, -values]).astype(np.float64)})  # fp32 would blur its bins
        low, high = collector.compute_collection_result()["x"][:2]
    assert actual == pytest.approx(max(-low, high), rel=TOLERANCE["entropy"])


def test_entropy_against_onnxruntime_at_another_range():
    """Its function on a histogram with the observer's bins, which then end beyond the largest value."""
    largest = 5.9
    values = drawn("laplace", seed=1)
    values *= largest / np.abs(values).max()
    actual = computed(EntropyObserver("x", "int8"), values)
    occupied = math.floor(largest * BINS / 8) + 1
    merge = occupied // ENTROPY_BINS
    bins = math.ceil(occupied / merge)
    edge = bins * merge * 8 / BINS
    histogram, edges = np.histogram(np.concatenate([values, -values]).astype(np.float64), 2 * bins, range=(-edge, edge))
    extremes = np.float32(-largest), np.float32(largest)
    collector = HistogramCollector("entropy", True, 2 * bins, 256, 99.99, "same")
    low, high = collector.get_entropy_threshold((histogram, edges, *extremes, extremes[1]), 256)
    assert actual == pytest.approx(max(-low, high), rel=TOLERANCE["entropy"])


def test_entropy_of_fp8_clips_outliers_only():
    values = drawn("outliers")
    amax = computed(EntropyObserver("x", "fp8"), values)
    assert np.percentile(np.abs(values), 99) < amax < np.abs(values).max()


@ALL
@PRECISIONS
def test_order_and_batches_do_not_matter(method, precision):
    """Not by a bit, though the range grows 20-fold in one order and not at all in the other."""
    values = np.sort(np.abs(drawn("student-t")))
    expected = computed(make_observer(method, precision, "x"), values)
    assert computed(make_observer(method, precision, "x"), *np.array_split(values, 11)) == expected
    assert computed(make_observer(method, precision, "x"), *np.array_split(values[::-1], 5)) == expected


@ALL
def test_signs_shapes_and_layouts_do_not_matter(method):
    values = drawn("laplace")
    expected = computed(make_observer(method, "int8", "x"), values)
    assert computed(make_observer(method, "int8", "x"), -values) == expected
    blocks = values.reshape(10, 100, 100).transpose(2, 0, 1)[:, ::-1]
    assert computed(make_observer(method, "int8", "x"), blocks) == expected
    assert computed(make_observer(method, "int8", "x"), values[0], np.empty((0, 3), np.float32), values[1:]) == expected


@ALL
def test_values_are_left_as_they_were(method):
    values = np.abs(drawn("laplace"))
    before = values.copy()
    computed(make_observer(method, "int8", "x"), values)
    np.testing.assert_array_equal(values, before)


@ALL
def test_half_precision(method):
    values = drawn("laplace").astype(np.float16)
    expected = computed(make_observer(method, "int8", "x"), values.astype(np.float32))
    assert computed(make_observer(method, "int8", "x"), values) == expected


@ALL
@pytest.mark.parametrize("doublings", [-60, 100])
def test_scales_with_its_values(method, doublings):
    values, factor = drawn("laplace"), np.float32(2.0**doublings)
    expected = computed(make_observer(method, "fp8", "x"), values) * 2.0**doublings
    assert computed(make_observer(method, "fp8", "x"), values * factor) == pytest.approx(expected, rel=1e-12)


@ALL
def test_the_range_grows_by_a_million(method):
    values = drawn("gaussian")
    late = make_observer(method, "int8", "x")
    early = make_observer(method, "int8", "x")
    expected = computed(early, values * 1e6, values)
    assert computed(late, values, values * 1e6) == expected
    assert late.amax == early.amax == np.abs(values * np.float32(1e6)).max()
    if method == "percentile":
        together = np.percentile(np.abs([values, values * 1e6]), 99.99, method="inverted_cdf")
        assert expected == pytest.approx(together, abs=TOLERANCE["percentile"] * late.amax)


@ALL
def test_the_range_grows_beyond_all_bins(method):
    values = drawn("gaussian")
    assert computed(make_observer(method, "int8", "x"), values * np.float32(1e-20), values) == pytest.approx(
        computed(make_observer(method, "int8", "x"), np.zeros_like(values), values), rel=1e-12
    )


@ALL
@PRECISIONS
@pytest.mark.parametrize("value", [3.4e38, 1e-25])
def test_one_magnitude(method, precision, value):
    amax = computed(make_observer(method, precision, "x"), np.full(1000, value, np.float32))
    assert amax == pytest.approx(value, rel=0.01)


@ALL
def test_reset(method):
    values = drawn("laplace")
    observer = make_observer(method, "int8", "x")
    computed(observer, values * 100)
    observer.reset()
    assert observer.amax == 0
    with pytest.raises(ObserverError):
        observer.compute()
    assert computed(observer, values) == computed(make_observer(method, "int8", "x"), values)


@ALL
def test_compute_may_be_asked_again(method):
    values = drawn("laplace")
    observer = make_observer(method, "int8", "x")
    observer.collect(values[:500])
    observer.compute()
    assert computed(observer, values[500:]) == computed(make_observer(method, "int8", "x"), values)


@ALL
@pytest.mark.parametrize("batches", [[], [np.empty(0, np.float32)]], ids=["nothing", "empty"])
def test_no_data(method, batches):
    with pytest.raises(ObserverError, match=r"^block\.linear: got no data, expected values to calibrate on; "):
        computed(make_observer(method, "int8", "block.linear"), *batches)


@ALL
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-40])
def test_only_zeros(method, value):
    with pytest.raises(ObserverError, match=r"^block\.linear: got only zeros, expected other values too; "):
        computed(make_observer(method, "int8", "block.linear"), np.full(5, value, np.float32))


@pytest.mark.parametrize("method", ["max", "percentile"])  # the others collect as percentile does
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64], ids=lambda kind: kind.__name__)
def test_values_that_are_not_finite(method, value, kind):
    """Are named, and leave the observer as it was."""
    values = drawn("laplace")
    observer = make_observer(method, "int8", "block.linear")
    observer.collect(values)
    broken = np.array([1e4, value, 1.0], kind)
    with pytest.raises(
        NonFiniteError, match=r"^block\.linear: got the value (nan|inf), expected finite ones; "
    ) as error:
        observer.collect(broken)
    assert error.value.tensor == "block.linear" and not math.isfinite(error.value.value)
    assert observer.amax == np.abs(values).max()
    assert observer.compute() == computed(make_observer(method, "int8", "x"), values)


@pytest.mark.parametrize(
    ("method", "precision", "message"),
    [
        ("mean", "int8", "method: got 'mean', expected max, percentile, entropy, mse; choose one of them"),
        ("max", "int4", "precision: got 'int4', expected int8, fp8; choose one of them"),
    ],
)
def test_no_such_method_or_precision(method, precision, message):
    for call in (
        lambda: make_observer(method, precision, "x"),
        lambda: weight_scales(np.ones((2, 2), np.float32), precision, method),
    ):
        with pytest.raises(ObserverError) as error:
            call()
        assert str(error.value) == message


@PRECISIONS
@pytest.mark.parametrize("method", ["max", "percentile", "entropy"])
def test_weight_scales_of_the_largest(method, precision):
    weight = drawn("laplace")[:6000].reshape(500, 12)
    scales = weight_scales(weight, precision, method)
    assert scales.dtype == np.float32 and scales.shape == (12,)
    np.testing.assert_allclose(scales, np.abs(weight).max(axis=0) / LARGEST[precision], rtol=1e-6)


@PRECISIONS
def test_weight_scales_of_least_error(precision):
    weight = drawn("laplace").reshape(50_000, 2)
    scales = weight_scales(weight, precision, "mse")
    for column, scale in enumerate(scales):
        values = weight[:, column]
        candidates = np.abs(values).max() * np.linspace(0.02, 1, 300)
        expected = min(squared_error(values, amax, precision) for amax in candidates)
        assert squared_error(values, scale * LARGEST[precision], precision) <= expected * (
            1 + TOLERANCE["weight error"]
        )


@PRECISIONS
@ALL
def test_weights_of_zeros_have_a_scale(method, precision):
    weight = drawn("laplace")[:300].reshape(100, 3)
    expected = weight_scales(weight, precision, method)
    weight[:, 1] = 0
    scales = weight_scales(weight, precision, method)
    np.testing.assert_array_equal(scales[[0, 2]], expected[[0, 2]])
    assert scales[1] == np.float32(1 / LARGEST[precision])


def test_weights_that_are_not_finite():
    weight = np.ones((4, 5), np.float32)
    weight[2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"^weight of output channel 3: got the value nan, expected finite ones; "):
        weight_scales(weight, "int8", "max")
