"""Real autoregressive rollouts of an fp32 plan, watched from inside: which values each tensor takes, and when.

Every pass of every chunk is seen, so the noisiest step and chunks deep in the video are always among the samples: the
statistics of a model with a state drift with both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.calib.backend import TappedBackend, Tensors
from videossm.runtime import Plan, Rollout, Snapshot, contract
from videossm.runtime.backends import Pass
from videossm.runtime.backends.memory import HostBuffer
from videossm.runtime.errors import UserError
from videossm.runtime.manifest import Manifest


class RecordingError(UserError):
    """A rollout that cannot be calibrated on."""


@dataclass(frozen=True)
class Moment:
    """Where in a rollout an engine ran. `step` counts a chunk's passes: denoising steps, then the commit."""

    rollout: int
    chunk: int
    step: int
    engine: str

    def __str__(self) -> str:
        return f"rollout {self.rollout}, chunk {self.chunk}, {self.engine} pass {self.step}"


# (moment, the tapped tensors by name, which the next pass overwrites)
OnPass = Callable[[Moment, Tensors], None]


def passes(manifest: Manifest) -> list[float]:
    """Noise level of every pass of a chunk: the denoising steps, then the commit, at 0."""
    return [*manifest.sampler.sigmas, 0.0]


def record(
    plan: Plan,
    taps: Mapping[str, Sequence[str]],
    prompts: Sequence[str],
    seeds: Sequence[int],
    chunks: int,
    on_pass: OnPass,
    on_chunk: Callable[[], object],
    files: Mapping[str, Path] | None = None,
) -> None:
    """Rolls `plan` out once for every prompt and seed, `chunks` chunks each.

    `on_pass` is called after every pass of a tapped engine, `on_chunk` after every chunk. `taps` and `files`: see
    TappedBackend. Raises RecordingError without prompts.
    """
    if not prompts:
        raise RecordingError("calibration: got no prompts, expected at least one; add some")
    state = _Recorder(len(passes(plan.manifest)), on_pass)
    backend = TappedBackend(taps, state.ran, files)
    rollout = Rollout(plan, [prompts[0]] * plan.manifest.stream.batch, backend=backend)
    fresh = rollout.snapshot()
    for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        state.start(number)
        rollout.restore(started(fresh, prompt, seed))
        for _ in islice(rollout, chunks):
            on_chunk()


def record_random(
    plan: Plan,
    taps: Mapping[str, Sequence[str]],
    seed: int,
    chunks: int,
    on_pass: OnPass,
    on_chunk: Callable[[], object],
    files: Mapping[str, Path] | None = None,
) -> None:
    """Runs every tapped engine on standard normal inputs, for `chunks` chunks as often as a chunk has passes.

    That is what calibrating without rollouts sees. Token ids, positions and noise levels are drawn from what they can
    be. The other arguments are those of `record`.
    """
    rng, runs = np.random.default_rng(seed), len(passes(plan.manifest))
    state = _Recorder(runs, on_pass)
    backend = TappedBackend(taps, state.ran, files)
    bound: list[tuple[Pass, dict[str, HostBuffer]]] = []
    for name, spec in plan.manifest.engines.items():
        if name in taps:
            engine = backend.load(name, spec, plan.path / spec.file)
            inputs, outputs = (
                {tensor.name: HostBuffer(np.zeros(tensor.shape, tensor.host_dtype)) for tensor in tensors}
                for tensors in (spec.inputs, spec.outputs)
            )
            bound.append((engine.bind(inputs, outputs), inputs))
    for _ in range(chunks):
        for engine_pass, inputs in bound:
            for _ in range(runs):
                for tensor, buffer in inputs.items():
                    buffer.write(_random(rng, tensor, buffer))
                engine_pass.run()
        on_chunk()


def started(fresh: Snapshot, prompt: str, seed: int) -> Snapshot:
    """The snapshot of a rollout that has made nothing yet, for another prompt and seed: engines load once."""
    streams = range(len(fresh.header.seeds))
    header = {"next_prompts": [prompt for _ in streams], "seeds": [seed + stream for stream in streams]}
    return Snapshot(fresh.header.model_copy(update=header), fresh.tensors)


def _random(rng: np.random.Generator, tensor: str, buffer: HostBuffer) -> NDArray[Any]:
    """Values for an engine's input `tensor`."""
    if np.issubdtype(buffer.dtype, np.integer):
        return rng.integers(0, 2, buffer.shape)
    uniform = tensor in (contract.SIGMA, contract.SIGMA_NEXT, contract.RHO)
    return rng.random(buffer.shape) if uniform else rng.standard_normal(buffer.shape)


class _Recorder:
    """Knows from the order of the passes where in the rollout each one stands."""

    def __init__(self, passes_per_chunk: int, on_pass: OnPass) -> None:
        self._passes, self._on_pass = passes_per_chunk, on_pass
        self.start(0)

    def start(self, rollout: int) -> None:
        self._rollout, self._steps = rollout, 0

    def ran(self, engine: str, tensors: Tensors) -> None:
        chunk, step = divmod(self._steps, self._passes)
        moment = Moment(self._rollout, chunk, step if engine == "step" else 0, engine)
        self._steps += engine == "step"
        self._on_pass(moment, tensors)


def check_finite(moment: Moment, name: str, values: NDArray[np.floating]) -> None:
    """Raises RecordingError, naming the moment and the tensor, unless all of `values` are finite."""
    with np.errstate(invalid="ignore", over="ignore"):  # told below
        total = values.sum()  # one pass and no temporary; NaN and infinity survive a sum
    if not np.isfinite(total):
        raise RecordingError(
            f"{moment}: tensor {name}: got a value that is not finite, expected numbers; check the checkpoint"
        )
