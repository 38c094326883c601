"""Two plans of one model, measured side by side over long rollouts: what a precision costs, and whether that grows.

Four questions, each with a rollout of its own, all over the video that plan A makes:

- steps: every pass of A once more through B's engine, on A's inputs. The error of one step.
- guided: B makes each chunk from A's state. The error that a chunk adds.
- states: B is given A's clean latents and keeps its own state. The error of what it remembers of the same video.
- free-running: B goes its own way from the first chunk. The two part, as any two chaotic trajectories do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videossm.calib.backend import ShadowBackend, Tensors
from videossm.calib.contender import Contender
from videossm.calib.record import RecordingError, started
from videossm.runtime import Plan, Rollout, contract
from videossm.runtime.window import Ring

Array = NDArray[np.floating]
PEAK = 255.0


@dataclass(frozen=True)
class ChunkError:
    """`latents`: relative error and cosine; `psnr_db` of the frames, None where they are equal."""

    latents: tuple[float, float]
    psnr_db: float | None


@dataclass(frozen=True)
class Errors:
    """One chunk of one rollout. Relative errors and cosines, by what they are of."""

    steps: list[tuple[float, float]]  # of the velocity at each denoising step; of the window's keys and values at last
    guided: ChunkError
    states: dict[tuple[str, int], tuple[float, float] | None]  # (kind, layer); None while A's is still zero
    free: ChunkError | None  # None where it was not asked for


class Comparison:
    """Contender `b` beside `a`, whose engines are loaded once, for any number of rollouts.

    `prompt`: any that the plans know. `free_running`: B on its own is measured too.
    """

    def __init__(self, a: Contender, b: Contender, prompt: str, free_running: bool) -> None:
        self._steps, self._states = _StepErrors(a.plan), _States(a.plan)
        shadow = ShadowBackend(a.backend(), b.backend(), {"step": b.file("step")}, self._steps.ran)
        self._leader = Rollout(a.plan, [prompt] * a.plan.manifest.stream.batch, backend=shadow)
        self._guided = b.rollout(prompt, 0)
        self._fed = self._guided.fork()
        self._free = self._guided.fork() if free_running else None
        self._fresh = self._leader.snapshot()

    @property
    def rollouts(self) -> int:
        """How many chunks are made, by A or B, for each chunk of `errors`; taking a given one costs next to nothing."""
        return 3 + (self._free is not None)

    def errors(self, prompt: str, seed: int, chunks: int) -> Iterator[Errors]:
        """Of a new rollout, chunk by chunk. Raises RecordingError for a value that is not finite."""
        self._steps.start()
        start = started(self._fresh, prompt, seed)
        for rollout in filter(None, (self._leader, self._fed, self._free)):
            rollout.restore(start)
        for index in range(chunks):
            yield self._chunk(index)

    def _chunk(self, index: int) -> Errors:
        leader, fed = self._leader, self._fed
        self._guided.restore(leader.snapshot())
        frames = next(leader).frames
        guided = self._chunk_error(self._guided, frames, f"chunk {index}")
        fed.append(leader.latent)
        return Errors(
            steps=self._steps.taken(),
            guided=guided,
            states=self._states.errors(index, leader.snapshot().tensors, fed.snapshot().tensors),
            free=self._chunk_error(self._free, frames, f"chunk {index}, free-running") if self._free else None,
        )

    def _chunk_error(self, rollout: Rollout, frames: NDArray[np.uint8], where: str) -> ChunkError:
        """Of the next chunk of `rollout` against the leader's last one, whose frames are `frames`."""
        chunk = next(rollout)
        return ChunkError(
            latents=_finite(difference(self._leader.latent, rollout.latent), f"{where}: latents"),
            psnr_db=psnr_db(frames, chunk.frames),
        )


class _StepErrors:
    """Collects the velocity's error over the passes of a chunk."""

    def __init__(self, plan: Plan) -> None:
        self._sampler = plan.manifest.sampler
        self._kept = [pair.present for pair in plan.manifest.window if pair.past is not None]
        self.start()

    def start(self) -> None:
        """A new rollout begins."""
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
