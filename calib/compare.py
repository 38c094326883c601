"""Two plans of one model, measured side by side over long rollouts: what a precision costs, and whether that grows.

Four questions, each with a rollout of its own, all over the video that plan A makes:

- steps: every pass of A once more through B's engine, on A's inputs. The error of one step.
- guided: B makes each chunk from A's state. The error that a chunk adds.
- states: B is given A's clean latents and keeps its own state. The error of what it remembers of the same video.
- free-running: B goes its own way from the first chunk. The two part, as any two chaotic trajectories do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from videossm.calib.backend import ShadowBackend, TappedBackend, Tensors
from videossm.calib.record import RecordingError
from videossm.runtime import Plan, Rollout, contract
from videossm.runtime.window import Ring

Array = NDArray[np.floating]
PEAK = 255.0


@dataclass(frozen=True)
class Contender:
    """A plan to measure. `files`: graphs of `precision` in place of its own, with the same inputs and outputs."""

    plan: Plan
    precision: str
    files: Mapping[str, Path] = field(default_factory=dict)

    def backend(self, threads: int | None = None) -> TappedBackend:
        return TappedBackend({}, lambda engine, tensors: None, self.files, self.precision, threads)

    def file(self, engine: str) -> Path:
        """The graph of an engine."""
        own = {name: spec.file for name, spec in self.plan.manifest.engines.items()}
        return self.files.get(engine, self.plan.path / own[engine])

    def rollout(self, prompt: str, seed: int) -> Rollout:
        return Rollout(self.plan, [prompt] * self.plan.manifest.stream.batch, seed, backend=self.backend())


@dataclass(frozen=True)
class Errors:
    """One chunk of one rollout. Relative errors and cosines, by what they are of."""

    steps: list[tuple[float, float]]  # of the velocity at each denoising step; of the window's keys and values at last
    guided: tuple[float, float]
    guided_psnr_db: float | None
    states: dict[tuple[str, int], tuple[float, float] | None]  # (kind, layer); None while A's is still zero
    free: tuple[float, float]
    free_psnr_db: float | None


def measure(a: Contender, b: Contender, prompt: str, seed: int, chunks: int) -> Iterator[Errors]:
    """The errors of `b` against `a`, chunk by chunk. Raises RecordingError for a value that is not finite."""
    steps = _StepErrors(a.plan)
    shadow = ShadowBackend(a.backend(), b.backend(), {"step": b.file("step")}, steps.ran)
    leader = Rollout(a.plan, [prompt] * a.plan.manifest.stream.batch, seed, backend=shadow)
    guided = b.rollout(prompt, seed)
    fed, free = guided.fork(), guided.fork()
    states = _States(a.plan)
    for index in range(chunks):
        guided.restore(leader.snapshot())
        made = next(leader)
        chunk, alone = next(guided), next(free)
        fed.append(leader.latent)
        yield Errors(
            steps=steps.taken(),
            guided=_finite(difference(leader.latent, guided.latent), f"chunk {index}: latents"),
            guided_psnr_db=psnr_db(made.frames, chunk.frames),
            states=states.errors(index, leader.snapshot().tensors, fed.snapshot().tensors),
            free=_finite(difference(leader.latent, free.latent), f"chunk {index}, free-running: latents"),
            free_psnr_db=psnr_db(made.frames, alone.frames),
        )


class _StepErrors:
    """Collects the velocity's error over the passes of a chunk."""

    def __init__(self, plan: Plan) -> None:
        self._sampler = plan.manifest.sampler
        self._kept = [pair.present for pair in plan.manifest.window if pair.past is not None]
        self._errors: list[tuple[float, float]] = []
        self._chunk = 0

    def ran(self, engine: str, inputs: Tensors, first: Tensors, second: Tensors) -> None:
        sigma = float(inputs[contract.SIGMA][0])
        if sigma:
            what = "velocity"
            pair = [self._velocity(inputs, outputs[contract.LATENT_NEXT]) for outputs in (first, second)]
        else:
            what = "keys and values"
            pair = [np.concatenate([outputs[name].ravel() for name in self._kept]) for outputs in (first, second)]
        where = f"chunk {self._chunk}, step {len(self._errors)} (sigma {sigma:.3g}): {what}"
        self._errors.append(_finite(difference(*pair), where))

    def taken(self) -> list[tuple[float, float]]:
        """Those of the last chunk."""
        errors, self._errors = self._errors, []
        self._chunk += 1
        return errors

    def _velocity(self, inputs: Tensors, following: Array) -> Array:
        """What the network predicted, from what the sampler made of it."""
        latent, sigma, sigma_next = (inputs[name] for name in (contract.LATENT, contract.SIGMA, contract.SIGMA_NEXT))
        if self._sampler.kind == "euler":
            return (following - latent) / (sigma_next - sigma)
        clean = (following - sigma_next * inputs[contract.NOISE]) / (1 - sigma_next)
        return (latent - clean) / sigma


class _States:
    """Compares what two rollouts remember, by kind and layer."""

    def __init__(self, plan: Plan) -> None:
        manifest = plan.manifest
        self._ring = Ring.of(manifest.stream)
        self._names: dict[str, tuple[str, int]] = {}
        kinds: dict[str, int] = {}
        for pair in manifest.window:
            kind = (
                f"window {pair.present.rpartition('.')[2]}s" if pair.past else f"gate {pair.present.rpartition('.')[2]}"
            )
            self._names[f"window/{pair.present}"] = (kind, kinds.get(kind, 0))
            kinds[kind] = kinds.get(kind, 0) + 1
        for layer, memory in enumerate(manifest.memory):
            self._names[f"memory/{memory.past}"] = ("memory", layer)

    def errors(self, chunk: int, a: Tensors, b: Tensors) -> dict[tuple[str, int], tuple[float, float] | None]:
        """Of the window only what this chunk put in; of the memory all."""
        found: dict[tuple[str, int], tuple[float, float] | None] = {}
        for name, key in self._names.items():
            first, second = a[name], b[name]
            if name.startswith("window/"):
                size = first.shape[1] // self._ring.window
                start = self._ring.chunk_slot(chunk) * size
                first, second = first[:, start : start + size], second[:, start : start + size]
            found[key] = _finite(difference(first, second), f"chunk {chunk}: {name}") if first.any() else None
        return found


def difference(a: Array, b: Array) -> tuple[float, float]:
    """(|b - a| / |a|, cosine of both), as flat vectors in float64; not finite where `a` or `b` is not, or is zero."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.linalg.norm(x), np.linalg.norm(y)
        return float(np.linalg.norm(y - x) / norms[0]), float(x @ y / (norms[0] * norms[1]))


def psnr_db(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """Peak signal-to-noise ratio of frames; None where they are equal."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return 10 * math.log10(PEAK**2 / error) if error else None


def _finite(errors: tuple[float, float], where: str) -> tuple[float, float]:
    if not np.isfinite(errors).all():
        raise RecordingError(f"{where}: got a value that is not finite, expected numbers; keep more layers in fp32")
    return errors
