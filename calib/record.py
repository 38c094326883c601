"""Real autoregressive rollouts of an fp32 plan, watched from inside: which values each tensor takes, and when.

Every pass of every chunk is seen, so the noisiest pass and chunks deep in the video are always among the samples: the
statistics of a model with a state drift with both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.calib.backend import TappedBackend, Tensors
from videossm.calib.contender import batch_of
from videossm.runtime import Plan, Rollout, Snapshot
from videossm.runtime.backends import Pass
from videossm.runtime.backends.memory import HostBuffer
from videossm.runtime.errors import UserError
from videossm.runtime.manifest import Input, Manifest


class RecordingError(UserError):
    """A rollout that cannot be calibrated on."""


@dataclass(frozen=True)
class Moment:
    """Where in a rollout an engine ran. `index`: of the chunk's pass; None for an engine that passes do not run."""

    rollout: int
    chunk: int
    engine: str
    index: int | None = None

    def __str__(self) -> str:
        at = "" if self.index is None else f", pass {self.index}"
        return f"rollout {self.rollout}, chunk {self.chunk}{at}, engine {self.engine}"


# (moment, the tapped tensors by name, which the next run overwrites)
OnRun = Callable[[Moment, Tensors], None]


def record(
    plan: Plan,
    taps: Mapping[str, Sequence[str]],
    prompts: Sequence[str] | None,
    seeds: Sequence[int],
    chunks: int,
    on_run: OnRun,
    on_chunk: Callable[[], object],
    files: Mapping[str, Path] | None = None,
) -> None:
    """Rolls `plan` out once for every prompt and seed, `chunks` chunks each; `prompts` None for a plan without text.

    `on_run` is called after every run of a tapped engine, `on_chunk` after every chunk. `taps` and `files`: see
    TappedBackend. Raises RecordingError without prompts.
    """
    if plan.manifest.text is not None and not prompts:
        raise RecordingError("calibration: got no prompts, expected at least one; add some")
    place = _Place(plan.manifest, taps, on_run)
    backend = TappedBackend(taps, place.ran, files)
    rollout = Rollout(plan, batch_of(prompts[0] if prompts else None, plan), backend=backend)
    fresh = rollout.snapshot()
    for number, (prompt, seed) in enumerate(with_seeds(prompts, seeds)):
        place.start(number)
        rollout.restore(started(fresh, prompt, seed))
        for _ in islice(rollout, chunks):
            place.next_chunk()
            on_chunk()


def record_random(
    plan: Plan,
    taps: Mapping[str, Sequence[str]],
    seed: int,
    chunks: int,
    on_run: OnRun,
    on_chunk: Callable[[], object],
    files: Mapping[str, Path] | None = None,
) -> None:
    """Runs every tapped engine on standard normal inputs, for `chunks` chunks as often as each has passes of it.

    That is what calibrating without rollouts sees. Token ids, positions and scalars are drawn from what they can be.
    The other arguments are those of `record`.
    """
    rng = np.random.default_rng(seed)
    place = _Place(plan.manifest, taps, on_run)
    backend = TappedBackend(taps, place.ran, files)
    bound: dict[str, tuple[Pass, list[tuple[Input, HostBuffer]]]] = {}
    for name, spec in plan.manifest.engines.items():
        if name in taps:
            engine = backend.load(name, spec, plan.path / spec.file)
            inputs, outputs = (
                {tensor.name: HostBuffer(np.zeros(tensor.shape, tensor.host_dtype)) for tensor in tensors}
                for tensors in (spec.inputs, spec.outputs)
            )
            bound[name] = engine.bind(inputs, outputs), [(tensor, inputs[tensor.name]) for tensor in spec.inputs]
    passes = [each.engine for each in plan.manifest.passes]
    others = [name for name in bound if name not in passes]
    for _ in range(chunks):
        for name in (*others, *passes):
            if name in bound:
                engine_pass, read = bound[name]
                for tensor, buffer in read:
                    buffer.write(_random(rng, tensor, buffer))
                engine_pass.run()
        place.next_chunk()
        on_chunk()


def with_seeds(prompts: Sequence[str] | None, seeds: Sequence[int]) -> Iterator[tuple[str | None, int]]:
    """The prompt, None without text, and the seed of each rollout."""
    return zip([None] * len(seeds) if prompts is None else prompts, seeds, strict=True)


def started(fresh: Snapshot, prompt: str | None, seed: int) -> Snapshot:
    """The snapshot of a rollout that has made nothing yet, for another prompt and seed: engines load once."""
    streams = range(len(fresh.header.seeds))
    header: dict[str, Any] = {"seeds": [seed + stream for stream in streams]}
    if prompt is not None:
        header["next_prompts"] = [prompt for _ in streams]
    return Snapshot(fresh.header.model_copy(update=header), fresh.tensors)


def _random(rng: np.random.Generator, tensor: Input, buffer: HostBuffer) -> NDArray[Any]:
    """Values for an engine's input."""
    if np.issubdtype(buffer.dtype, np.integer):
        return rng.integers(0, 2, buffer.shape)
    uniform = tensor.source.startswith("pass.") or tensor.source == "window.rho"
    return rng.random(buffer.shape) if uniform else rng.standard_normal(buffer.shape)


class _Place:
    """Knows from the order of the runs where in the rollout each one stands."""

    def __init__(self, manifest: Manifest, taps: Mapping[str, Sequence[str]], on_run: OnRun) -> None:
        self._passes = [(i, each.engine) for i, each in enumerate(manifest.passes) if taps.get(each.engine)]
        self._engines = set(manifest.pass_engines)
        self._on_run = on_run
        self.start(0)

    def start(self, rollout: int) -> None:
        self._rollout, self._chunk, self._runs = rollout, 0, 0

    def next_chunk(self) -> None:
        self._chunk, self._runs = self._chunk + 1, 0

    def ran(self, engine: str, tensors: Tensors) -> None:
        index = None
        if engine in self._engines:
            index, expected = self._passes[self._runs]
            assert engine == expected, f"passes run in the manifest's order, {expected} before {engine}"
            self._runs += 1
        self._on_run(Moment(self._rollout, self._chunk, engine, index), tensors)


def check_finite(moment: Moment, name: str, values: NDArray[np.floating]) -> None:
    """Raises RecordingError, naming the moment and the tensor, unless all of `values` are finite."""
    with np.errstate(invalid="ignore", over="ignore"):  # told below
        total = values.sum()  # one pass and no temporary; NaN and infinity survive a sum
    if not np.isfinite(total):
        raise RecordingError(
            f"{moment}: tensor {name}: got a value that is not finite, expected numbers; check the checkpoint"
        )
