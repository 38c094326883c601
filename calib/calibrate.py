"""Scales of activations from rollouts: what each tensor reached, over every pass of every chunk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from videossm.calib.backend import Tensors
from videossm.calib.calibration import Calibration, PassRange, Settings, Source, TensorScale
from videossm.calib.linears import Linear, Product, find_linears
from videossm.calib.observers import FORMATS, EightBits, Method, Observer, make_observer
from videossm.calib.options import CHUNKS, METHOD, SEED, SIZE, CalibrationOptions
from videossm.calib.plans import (
    candidates,
    check_source,
    chunks_within,
    quantised_engines,
    save_graph,
    smoothed_graph,
)
from videossm.calib.prompts import default_prompts, read_prompts
from videossm.calib.record import Moment, OnRun, check_finite, record, record_random
from videossm.runtime import Plan
from videossm.runtime.manifest import Manifest

Taps = dict[str, list[str]]  # names of tensors, by engine
Amax = dict[str, dict[str, NDArray[np.float32]]]  # largest magnitude of each channel, [K], by engine and tensor


def settings_for(plan: Plan, options: CalibrationOptions) -> Settings:
    """What `options`, which were checked, mean for `plan`. Raises PromptError."""
    size = options.calibration_size
    if options.calibration_prompts is None:
        prompts = default_prompts(plan, size or SIZE, SEED)
        rollouts = size or SIZE
    else:
        given = read_prompts(options.calibration_prompts, plan)
        rollouts = size or len(given)
        prompts = tuple(given[i % len(given)] for i in range(rollouts))
    return Settings(
        method=cast("Method", options.calibration_method or METHOD),
        prompts=prompts,
        seeds=tuple(range(SEED, SEED + rollouts)),
        chunks=chunks_within(plan, options.calibration_chunks or CHUNKS),
        data="rollouts",
        smoothquant=options.smoothquant,
        quantize_attention=options.quantize_attention,
    )


def calibrate(plan: Plan, precision: EightBits, settings: Settings, on_chunk: Callable[[], object]) -> Calibration:
    """Rolls the fp32 `plan` out under `settings` and computes a scale for every tensor that can be quantised.

    `on_chunk` is called `recorded_chunks(settings)` times.
    Raises PrecisionError for a plan that is not fp32, RecordingError without prompts or for a value that is not
    finite, ObserverError for a tensor that no scale can be found for.
    """
    check_source(plan)
    linears, products, _ = candidates(plan)
    products = products if settings.quantize_attention else []
    symmetric = {(p.engine, name) for p in products for name in (p.query, p.key, p.value)}
    symmetric |= {(linear.engine, linear.input) for linear in linears if linear.operator != "MatMul"}
    statistics = _Statistics(plan.manifest, precision, settings, symmetric)
    if settings.smoothquant is None:
        _record(plan, settings, _inputs(linears, products), statistics.take, on_chunk, {})
        return _calibration(plan, precision, settings, statistics, {})
    channels: Amax = {engine: {} for engine in quantised_engines(plan.manifest)}
    multiplied = [linear for linear in linears if linear.operator == "MatMul"]
    _record(plan, settings, _inputs(multiplied, []), lambda *seen: _widen(channels, *seen), on_chunk, {})
    with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
        files, smoothed = {}, []
        for engine in channels:
            graph = smoothed_graph(plan, engine, channels[engine], settings.smoothquant)
            files[engine] = Path(folder, f"{engine}.onnx")
            save_graph(graph, files[engine])
            smoothed += find_linears(graph, engine, plan.manifest.lower_precision.layers)[0]
        _record(plan, settings, _inputs(smoothed, products), statistics.take, on_chunk, files)
    return _calibration(plan, precision, settings, statistics, channels)


def recorded_chunks(settings: Settings) -> int:
    """Chunks that a calibration rolls out: SmoothQuant has to know the channels first, which doubles them."""
    return len(settings.seeds) * settings.chunks * (1 if settings.smoothquant is None else 2)


class _Statistics:
    """An observer for every tensor, and what it reached in each pass of a chunk.

    `symmetric`: engines and tensors without a zero point, whatever their values are: what attention's products read,
    which have no bias, and convolutions, whose padding is 0. `videossm.export` moves a zero point into a bias for
    TensorRT.
    """

    def __init__(
        self, manifest: Manifest, precision: EightBits, settings: Settings, symmetric: Collection[tuple[str, str]]
    ) -> None:
        self._manifest, self._symmetric = manifest, symmetric
        self._precision, self._method = precision, settings.method
        self._tensors: dict[tuple[str, str], _Tensor] = {}

    def take(self, moment: Moment, tensors: Tensors) -> None:
        for name, values in tensors.items():
            check_finite(moment, name, values)
            found = self._tensors.get((moment.engine, name))
            if found is None:
                observer = make_observer(self._method, self._precision, f"{moment.engine}.{name}")
                observer.symmetric = (moment.engine, name) in self._symmetric
                found = self._tensors[moment.engine, name] = _Tensor(observer)
            found.take(moment.index, values)

    def scales(self, engine: str) -> dict[str, TensorScale]:
        """By tensor; raises ObserverError."""
        return {name: self._scale(found) for (owner, name), found in self._tensors.items() if owner == engine}

    def _scale(self, found: _Tensor) -> TensorScale:
        form = FORMATS[self._precision]
        amax, low = found.observer.compute(), found.observer.low_end(form)
        scale, zero_point = form.codes(amax, low)
        return TensorScale(
            amax=amax, low=low, scale=scale, zero_point=zero_point, passes=self._ranges(found), channel_amax=None
        )

    def _ranges(self, found: _Tensor) -> tuple[PassRange, ...]:
        ranges = []
        for index, reached in found.reached.items():
            values = () if index is None else tuple(self._manifest.passes[index].scalars.values())
            mean_square = reached.square / max(1, reached.count)
            ranges.append(
                PassRange(index=index, value=next(iter(values), None), amax=reached.amax, mean_square=mean_square)
            )
        return tuple(ranges)


@dataclass
class _Reached:
    """Of one tensor in one pass: the largest magnitude, the sum of squares, and how many values."""

    amax: float = 0.0
    square: float = 0.0
    count: int = 0


class _Tensor:
    """Running statistics of one tensor, by pass of a chunk."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.reached: dict[int | None, _Reached] = {}  # in the order of the passes

    def take(self, index: int | None, values: NDArray[np.float32]) -> None:
        self.observer.collect(values)
        flat, reached = values.ravel(), self.reached.setdefault(index, _Reached())
        reached.amax = max(reached.amax, float(abs(flat.max())), float(abs(flat.min())))
        reached.square += float(flat @ flat)
        reached.count += flat.size


def _record(
    plan: Plan,
    settings: Settings,
    taps: Taps,
    on_run: OnRun,
    on_chunk: Callable[[], object],
    files: dict[str, Path],
) -> None:
    if settings.data == "random":
        for seed in settings.seeds:
            record_random(plan, taps, seed, settings.chunks, on_run, on_chunk, files)
    else:
        record(plan, taps, settings.prompts, settings.seeds, settings.chunks, on_run, on_chunk, files)


def _inputs(linears: Sequence[Linear], products: Sequence[Product]) -> Taps:
    """What the given layers read, each tensor once."""
    taps: Taps = {}
    for linear in linears:
        taps.setdefault(linear.engine, []).append(linear.input)
    for product in products:
        taps.setdefault(product.engine, []).extend([product.query, product.key, product.value])
    return {engine: list(dict.fromkeys(names)) for engine, names in taps.items()}


def _widen(channels: Amax, moment: Moment, tensors: Tensors) -> None:
    """Takes the magnitudes of [.., K] into `channels`."""
    for name, values in tensors.items():
        check_finite(moment, name, values)
        seen = np.abs(values.reshape(-1, values.shape[-1])).max(0)
        known = channels[moment.engine].get(name)
        channels[moment.engine][name] = seen if known is None else np.maximum(known, seen)


def _calibration(
    plan: Plan, precision: EightBits, settings: Settings, statistics: _Statistics, channels: Amax
) -> Calibration:
    engines = quantised_engines(plan.manifest)
    tensors = {engine: statistics.scales(engine) for engine in engines}
    for engine, by_name in channels.items():
        for name, amax in by_name.items():
            largest = float(amax.max())
            scale = FORMATS[precision].scale(largest)
            unsmoothed = TensorScale(amax=largest, low=None, scale=scale, zero_point=0, passes=(), channel_amax=None)
            entry = tensors[engine].get(name, unsmoothed)
            tensors[engine][name] = entry.model_copy(update={"channel_amax": tuple(map(float, amax))})
    return Calibration(
        format="videossm-calibration",
        version=2,
        precision=precision,
        source=Source.of(plan, engines),
        settings=settings,
        tensors=tensors,
    )
