"""Scales of activations from rollouts: what each tensor reached, over every pass of every chunk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from videossm.calib.backend import Tensors
from videossm.calib.calibration import Calibration, Settings, Source, Step, TensorScale
from videossm.calib.linears import Linear, Product, find_linears
from videossm.calib.observers import FORMATS, Observer, Precision, make_observer
from videossm.calib.plans import QUANTISED_ENGINES, candidates, check_source, save_graph, smoothed_graph
from videossm.calib.record import Moment, OnPass, check_finite, passes, record, record_random
from videossm.runtime import Plan

Taps = dict[str, list[str]]  # names of tensors, by engine
Amax = dict[str, dict[str, NDArray[np.float32]]]  # largest magnitude of each channel, [K], by engine and tensor


def calibrate(plan: Plan, precision: Precision, settings: Settings, on_chunk: Callable[[], object]) -> Calibration:
    """Rolls the fp32 `plan` out under `settings` and computes a scale for every tensor that can be quantised.

    `on_chunk` is called `recorded_chunks(settings)` times.
    Raises PrecisionError for a plan that is not fp32, RecordingError without prompts or for a value that is not
    finite, ObserverError for a tensor that no scale can be found for.
    """
    check_source(plan)
    linears, products, _ = candidates(plan)
    products = products if settings.quantize_attention else []
    attended = {name for product in products for name in (product.query, product.key, product.value)}
    statistics = _Statistics(plan, precision, settings, attended)
    if settings.smoothquant is None:
        _record(plan, settings, _inputs(linears, products), statistics.take, on_chunk, {})
        return _calibration(plan, precision, settings, statistics, {})
    channels: Amax = {engine: {} for engine in QUANTISED_ENGINES}
    _record(plan, settings, _inputs(linears, []), lambda *seen: _widen(channels, *seen), on_chunk, {})
    with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
        files, smoothed = {}, []
        for engine in channels:
            graph = smoothed_graph(plan, engine, channels[engine], settings.smoothquant)
            files[engine] = Path(folder, f"{engine}.onnx")
            save_graph(graph, files[engine])
            smoothed += find_linears(graph, engine)[0]
        _record(plan, settings, _inputs(smoothed, products), statistics.take, on_chunk, files)
    return _calibration(plan, precision, settings, statistics, channels)


def recorded_chunks(settings: Settings) -> int:
    """Chunks that a calibration rolls out: SmoothQuant has to know the channels first, which doubles them."""
    return len(settings.seeds) * settings.chunks * (1 if settings.smoothquant is None else 2)


class _Statistics:
    """An observer for every tensor, and what it reached in each pass of a chunk.

    `symmetric`: tensors without a zero point, whatever their values are, as those of products without a bias.
    """

    def __init__(self, plan: Plan, precision: Precision, settings: Settings, symmetric: Collection[str]) -> None:
        self._symmetric = symmetric
        self._precision, self._method = precision, settings.method
        self._sigmas = passes(plan.manifest)
        self._tensors: dict[tuple[str, str], _Tensor] = {}

    def take(self, moment: Moment, tensors: Tensors) -> None:
        for name, values in tensors.items():
            check_finite(moment, name, values)
            found = self._tensors.get((moment.engine, name))
            if found is None:
                observer = make_observer(self._method, self._precision, f"{moment.engine}.{name}")
                observer.symmetric = name in self._symmetric
                found = self._tensors[moment.engine, name] = _Tensor(observer, len(self._sigmas))
            found.take(moment.step, values)

    def scales(self, engine: str) -> dict[str, TensorScale]:
        """By tensor; raises ObserverError."""
        return {name: self._scale(engine, found) for (owner, name), found in self._tensors.items() if owner == engine}

    def _scale(self, engine: str, found: _Tensor) -> TensorScale:
        form = FORMATS[self._precision]
        amax, low = found.observer.compute(), found.observer.low_end(form)
        steps = (
            Step(sigma=sigma, amax=float(found.amax[i]), mean_square=float(found.squares[i] / max(1, found.counts[i])))
            for i, sigma in enumerate(self._sigmas)
        )
        scale, zero_point = form.codes(amax, low)
        return TensorScale(
            amax=amax, low=low, scale=scale, zero_point=zero_point, steps=tuple(steps), channel_amax=None
        )


class _Tensor:
    """Running statistics of one tensor, by pass of a chunk."""

    def __init__(self, observer: Observer, passes_per_chunk: int) -> None:
        self.observer = observer
        self.amax, self.squares, self.counts = (np.zeros(passes_per_chunk) for _ in range(3))

    def take(self, step: int, values: NDArray[np.float32]) -> None:
        self.observer.collect(values)
        flat = values.ravel()
        self.amax[step] = max(self.amax[step], abs(flat.max()), abs(flat.min()))
        self.squares[step] += float(flat @ flat)
        self.counts[step] += flat.size


def _record(
    plan: Plan,
    settings: Settings,
    taps: Taps,
    on_pass: OnPass,
    on_chunk: Callable[[], object],
    files: dict[str, Path],
) -> None:
    if settings.data == "random":
        for seed in settings.seeds:
            record_random(plan, taps, seed, settings.chunks, on_pass, on_chunk, files)
    else:
        record(plan, taps, settings.prompts, settings.seeds, settings.chunks, on_pass, on_chunk, files)


def _inputs(linears: Sequence[Linear], products: Sequence[Product]) -> Taps:
    """What the given layers read, each tensor once."""
    taps: Taps = {engine: [] for engine in QUANTISED_ENGINES}
    for linear in linears:
        taps[linear.engine].append(linear.input)
    for product in products:
        taps[product.engine] += [product.query, product.key, product.value]
    return {engine: list(dict.fromkeys(names)) for engine, names in taps.items()}


def _widen(channels: Amax, moment: Moment, tensors: Tensors) -> None:
    """Takes the magnitudes of [.., K] into `channels`."""
    for name, values in tensors.items():
        check_finite(moment, name, values)
        seen = np.abs(values.reshape(-1, values.shape[-1])).max(0)
        known = channels[moment.engine].get(name)
        channels[moment.engine][name] = seen if known is None else np.maximum(known, seen)


def _calibration(
    plan: Plan, precision: Precision, settings: Settings, statistics: _Statistics, channels: Amax
) -> Calibration:
    tensors = {engine: statistics.scales(engine) for engine in QUANTISED_ENGINES}
    for engine, by_name in channels.items():
        for name, amax in by_name.items():
            largest = float(amax.max())
            scale = FORMATS[precision].scale(largest)
            unsmoothed = TensorScale(amax=largest, low=None, scale=scale, zero_point=0, steps=(), channel_amax=None)
            entry = tensors[engine].get(name, unsmoothed)
            tensors[engine][name] = entry.model_copy(update={"channel_amax": tuple(map(float, amax))})
    return Calibration(
        format="videossm-calibration",
        version=1,
        precision=precision,
        source=Source.of(plan, QUANTISED_ENGINES),
        settings=settings,
        tensors=tensors,
    )
