"""What magnitude a format's largest code should stand for, from a stream of a tensor's values.

An observer never keeps values: it counts |x| in equal bins over [0, 2^e). A larger value doubles the range by merging
bins in pairs. Scaling by a power of two is exact in floating point, so the counts are those of all values at once,
whatever the order and the batches were.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videossm.runtime.errors import UserError

Floats = NDArray[np.floating[Any]]
AnyFloat = TypeVar("AnyFloat", bound=np.floating[Any])
EightBits = Literal["int8", "fp8"]
Method = Literal["max", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

E4M3_MANTISSA_BITS, E4M3_LEAST_EXPONENT = 3, -6  # fp8: below 2^-6 its steps are all the same
BINS = 1 << 14  # at least half of them lie below the largest value
ENTROPY_BINS = 1 << 11  # of |x| up to the largest value, as in TensorRT's calibrator; a few more where BINS round so
PERCENTILE = 99.99
_ENTROPY_LEVELS = 256  # of the signed range: 128 of |x|
_LEAST_EXPONENT = -100  # what stays below 2^-100 counts as zero: its scales would near fp32's subnormal numbers
_STEP = 0.99  # from one candidate of the MSE search to the next
_LEAST_FRACTION = 1 / 64  # of the largest value: below, a bin of the histogram would be wider than a step of int8
# Halving the range of K weights saves int8 amax^2 / 258,000 of squared error a weight (3/4 of step^2 / 12) and costs
# amax^2 / 4 for the one that is clipped, so it pays for no K below 64,500; fp8 gains less, as its steps are relative.
_LEAST_WEIGHT_FRACTION = 1 / 2


class ObserverError(UserError):
    """A tensor that no scale can be found for, or a method or precision that does not exist."""


class NonFiniteError(ObserverError):
    """A value that is NaN or infinite: `tensor` names whose, `value` is one of them."""

    def __init__(self, tensor: str, value: float) -> None:
        super().__init__(f"{tensor}: got the value {value}, expected finite ones; check the checkpoint")
        self.tensor, self.value = tensor, value


class Codes(NamedTuple):
    """A value is (code - zero_point) * scale."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Format:
    """Codes of 8 bits, symmetric around 0. `round_codes` rounds values within +-`largest` to the nearest code.

    `one_sided`: does it have codes from `-largest - 1` on that a zero point can move, for values of one sign?
    """

    largest: float
    round_codes: Callable[[NDArray[Any]], NDArray[Any]]
    one_sided: bool = False

    def is_one_sided(self, low: float, amax: float) -> bool:
        """Do values from `low` to `amax` leave more than a third of the symmetric codes unused, and can that be had?"""
        return self.one_sided and low > -amax / 3

    def codes(self, amax: float, low: float | None) -> Codes:
        """Those for values from `low` to `amax`; symmetric ones where `low` is None."""
        if low is None:
            return Codes(self.scale(amax), 0)
        scale = (amax - low) / (2 * self.largest + 1)
        return Codes(scale, round(-self.largest - 1 - low / scale))

    def finer(self, amax: float, low: float) -> Format:
        """The format of which `codes` makes use between 0 and `amax`: with about twice as many codes there."""
        return Format((2 * self.largest + 1) * amax / (amax - low), self.round_codes)

    def scale(self, amax: float) -> float:
        """What a code of 1 stands for when the largest code stands for `amax`."""
        return amax / self.largest

    def quantize_dequantize(self, values: NDArray[AnyFloat], scale: ArrayLike) -> NDArray[AnyFloat]:
        """The values that are left of `values` (float32 or float64, kept): clipped, rounded to nearest even.

        `scale`, above 0, broadcasts against `values`.
        """
        scale = np.asarray(scale, dtype=values.dtype)
        codes = self.round_codes(np.clip(values / scale, -self.largest, self.largest))
        return codes.astype(values.dtype, copy=False) * scale


def _round_e4m3(codes: NDArray[AnyFloat]) -> NDArray[AnyFloat]:
    """What a cast to float8_e4m3fn leaves of values up to 448, in arithmetic: ten times as fast as ml_dtypes' cast.

    `videossm.calib.emulate_fp8` says how it works.
    """
    lost_bits = np.finfo(codes.dtype).nmant - E4M3_MANTISSA_BITS
    large = np.maximum(np.abs(codes) * (2.0**lost_bits - 1), 1.5 * 2.0 ** (lost_bits + E4M3_LEAST_EXPONENT))
    return (codes + large) - large


FORMATS: dict[EightBits, Format] = {"int8": Format(127.0, np.rint, one_sided=True), "fp8": Format(448.0, _round_e4m3)}


class Observer(ABC):
    """`collect` values of one tensor in any portions, then `compute` its amax.

    `amax` is the largest |x| so far, `low` the smallest x.
    """

    symmetric = False  # no zero point, whatever the values are

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset()

    def low_end(self, form: Format) -> float | None:
        """The smallest value that one-sided codes of `form` cover; None for symmetric codes."""
        if self.symmetric or not form.is_one_sided(self.low, self.amax):
            return None
        return min(self.low, 0.0)

    def reset(self) -> None:
        """Forgets everything that was collected."""
        self.amax, self.low = 0.0, math.inf
        self._collected = False

    def collect(self, values: Floats) -> None:
        """Takes in `values` (any shape; up to fp32). Raises NonFiniteError, and keeps none of them, if one is not."""
        if not values.size:
            return
        # 12,288 fp32 values take 20 us with a histogram, on one 2.6 GHz core: bincount 12, cast 3, the largest 1, abs 1
        # (np.histogram alone: 68 us). NaN survives max, so that is the check as well.
        magnitudes = np.abs(values).astype(np.float32, copy=False)
        amax = float(magnitudes.max())
        if not math.isfinite(amax):
            raise NonFiniteError(self.name, amax)
        self._count(magnitudes, amax)
        self.amax, self.low = max(self.amax, amax), min(self.low, float(values.min()))
        self._collected = True

    def compute(self) -> float:
        """The magnitude that the format's largest code should stand for: above 0, at most `amax`.

        Raises ObserverError when there was no data, or only zeros.
        """
        if not self._collected:
            raise ObserverError(f"{self.name}: got no data, expected values to calibrate on; run what computes it")
        if self.amax < 2.0**_LEAST_EXPONENT:
            raise ObserverError(f"{self.name}: got only zeros, expected other values too; leave it in high precision")
        return min(self._clipped(), self.amax)

    @abstractmethod
    def _count(self, magnitudes: NDArray[np.float32], amax: float) -> None:
        """Takes in |x|, of which `amax` is the largest; may overwrite `magnitudes`."""

    @abstractmethod
    def _clipped(self) -> float:
        """What `compute` returns when it is at most `amax`."""


class MaxObserver(Observer):
    """Nothing is clipped."""

    def _count(self, magnitudes: NDArray[np.float32], amax: float) -> None:
        pass

    def _clipped(self) -> float:
        return self.amax


class _HistogramObserver(Observer):
    def reset(self) -> None:
        super().reset()
        self._counts = np.zeros(BINS, np.int64)
        self._exponent = _LEAST_EXPONENT  # the bins cover [0, 2 ** exponent)

    @property
    def _width(self) -> float:
        """Of a bin."""
        return 2.0**self._exponent / BINS

    def _count(self, magnitudes: NDArray[np.float32], amax: float) -> None:
        exponent = math.frexp(amax)[1]  # amax < 2 ** exponent
        if exponent > self._exponent:
            merged = self._counts.reshape(-1, min(2 ** (exponent - self._exponent), BINS)).sum(axis=1)
            self._counts[:] = 0
            self._counts[: merged.size] = merged
            self._exponent = exponent
        magnitudes *= np.float32(1 / self._width)
        found = np.bincount(magnitudes.astype(np.intp).ravel(order="K"))
        self._counts[: found.size] += found


class PercentileObserver(_HistogramObserver):
    """`percentile` % of all |x| are not clipped: the upper edge of the bin in which that share is reached."""

    def __init__(self, name: str, percentile: float = PERCENTILE) -> None:
        if not 0 < percentile <= 100:
            raise ObserverError(f"percentile: got {percentile}, expected one above 0, at most 100; choose another")
        super().__init__(name)
        self._share = percentile / 100

    def _clipped(self) -> float:
        reached = np.cumsum(self._counts)
        return (int(np.searchsorted(reached, self._share * reached[-1])) + 1) * self._width


class EntropyObserver(_HistogramObserver):
    """The range whose quantised histogram has the least Kullback-Leibler divergence from the histogram itself.

    After Migacz, "8-bit Inference with TensorRT" (GTC 2017), with the conventions of onnxruntime's HistogramCollector
    (2 * ENTROPY_BINS bins, 256 levels) on values of both signs, a histogram of |x| and its mirror image.

    The minimum is rugged, as theirs: a few values in the tail may move it by 20 %, and so may another width of bins.

    fp8: the levels are what rounds to one code of E4M3. The divergence sees how much falls into a level, not how far
    it is moved, so it clips as hard as for int8 although E4M3 gains nothing by it: on data with outliers the mean
    squared error is 7 to 42 times that of `max`; `max` and `mse` suit fp8 better.
    """

    def __init__(self, name: str, precision: EightBits) -> None:
        super().__init__(name)
        self._levels = _int8_levels if precision == "int8" else _fp8_levels

    def _clipped(self) -> float:
        occupied = int(np.flatnonzero(self._counts)[-1]) + 1
        merge = occupied // ENTROPY_BINS
        counts = np.add.reduceat(self._counts[:occupied], np.arange(0, occupied, merge))
        signed = np.concatenate([counts[::-1], counts])
        least, best = math.inf, counts.size
        for bins in range(_ENTROPY_LEVELS // 2, counts.size + 1):
            start, stop = counts.size - bins, min(counts.size + bins + 1, signed.size)
            if (divergence := _divergence(signed, start, stop, self._levels)) < least:
                least, best = divergence, bins
        return (best + 1) * merge * self._width


# size of a histogram -> (first bin of each level [L], the number of bins that lie in a level)
Levels = Callable[[int], tuple[NDArray[np.intp], int]]


def _int8_levels(size: int) -> tuple[NDArray[np.intp], int]:
    """Equal levels; the bins left over at the end lie in none, as onnxruntime has it: they speak against this size."""
    bins = size // _ENTROPY_LEVELS
    return np.arange(_ENTROPY_LEVELS) * bins, _ENTROPY_LEVELS * bins


def _fp8_levels(size: int) -> tuple[NDArray[np.intp], int]:
    """Bins whose centres round to the same code."""
    largest = FORMATS["fp8"].largest
    centres = ((np.arange(size) + 0.5) * 2 / size - 1) * largest
    codes = FORMATS["fp8"].quantize_dequantize(centres, 1.0)
    return np.flatnonzero(np.diff(codes, prepend=-math.inf)), size


def _divergence(counts: NDArray[np.int64], start: int, stop: int, levels: Levels) -> float:
    """KL(P || Q). P: `counts` [start, stop) with all beyond put into the outermost bins.

    Q: the same without what lies beyond, each level's sum spread evenly over those of its bins that P has.
    """
    inside = counts[start:stop]
    p = inside.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    starts, covered = levels(inside.size)
    sums = np.add.reduceat(inside, starts)  # the last level takes what is left over
    present = np.add.reduceat((p[:covered] != 0).astype(np.int64), starts)
    q = np.zeros_like(p)
    q[:covered] = np.repeat(sums // np.maximum(present, 1) * (present != 0), np.diff(starts, append=covered))
    if not q.any():
        return math.inf
    smooth_p, smooth_q = _smoothed(p), _smoothed(q)
    return float((smooth_p * np.log(smooth_p / smooth_q)).sum())


def _smoothed(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """As shares, with no zero: each gets 1e-4 of a count, which the other bins give."""
    empty = counts == 0
    given = 1e-4 * empty.sum() / (counts.size - empty.sum())
    shares = np.where(empty, 1e-4, counts - given)
    return shares / shares.sum()


class MseObserver(_HistogramObserver):
    """The range with the least mean squared quantisation error over the histogram, bins taken at their centres."""

    def __init__(self, name: str, precision: EightBits) -> None:
        super().__init__(name)
        self._format = FORMATS[precision]

    def _clipped(self) -> float:
        (occupied,) = np.nonzero(self._counts)
        centres = (occupied[:, None] + 0.5) * self._width
        counts = self._counts[occupied, None].astype(np.float64)
        low = self.low_end(self._format)
        form = self._format if low is None else self._format.finer(self.amax, low)
        return float(_least_error(centres, counts, np.array([self.amax]), form, _LEAST_FRACTION)[0])


def _least_error(values: Floats, counts: Floats, amax: Floats, form: Format, least_fraction: float) -> Floats:
    """[N]: for each column of `values` [K, N], counted `counts` [K, N or 1] times, the best of amax * 0.99^k."""
    candidates = math.ceil(math.log(least_fraction) / math.log(_STEP))
    best, least = amax, np.full(amax.shape, math.inf)
    for fraction in _STEP ** np.arange(candidates):
        errors = form.quantize_dequantize(values, amax * fraction / form.largest)
        errors -= values
        sums = (counts * errors * errors).sum(axis=0, dtype=np.float64)
        best, least = np.where(sums < least, amax * fraction, best), np.minimum(sums, least)
    return best


def make_observer(method: Method, precision: EightBits, name: str) -> Observer:
    """An observer of the tensor `name`. Raises ObserverError for a method or precision that does not exist."""
    _check(method, precision)
    if method == "max":
        return MaxObserver(name)
    if method == "percentile":
        return PercentileObserver(name)
    return EntropyObserver(name, precision) if method == "entropy" else MseObserver(name, precision)


def weight_scales(weight: Floats, precision: EightBits, method: Method) -> NDArray[np.float32]:
    """Scales [N] of the output channels of `weight` [K, N].

    `percentile` and `entropy` use `max`: they are for the tail of a large sample, and a channel's K weights are all
    there is; 99.99 % of fewer than 10,000 values is all of them. A channel of zeros gets the scale of amax 1: any
    would do, and the smallest ones would make its product with the activations' scale subnormal.
    Raises NonFiniteError naming the channel, and ObserverError for a method or precision that does not exist.
    """
    _check(method, precision)
    form, weight = FORMATS[precision], weight.astype(np.float32, copy=False)
    amax = np.abs(weight).max(axis=0)
    for channel in np.flatnonzero(~np.isfinite(amax))[:1]:
        raise NonFiniteError(f"weight of output channel {channel}", float(amax[channel]))
    amax[amax < 2.0**_LEAST_EXPONENT] = 1
    if method == "mse":
        amax = _least_error(weight, np.ones((1, 1), np.float32), amax, form, _LEAST_WEIGHT_FRACTION)
    return (amax / form.largest).astype(np.float32)


def _check(method: str, precision: str) -> None:
    for what, got, expected in (("method", method, METHODS), ("precision", precision, tuple(FORMATS))):
        if got not in expected:
            raise ObserverError(f"{what}: got {got!r}, expected {', '.join(expected)}; choose one of them")
