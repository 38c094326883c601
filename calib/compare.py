"""Two plans of one model, measured side by side over long rollouts: what a precision costs, and whether that grows.

Four questions, each with a rollout of its own, all over the video that plan A makes:

- passes: every pass of A once more through B's engine, on A's inputs. The error of one pass.
- guided: B makes each chunk from A's state. The error that a chunk adds.
- states: B is given A's clean samples and keeps its own state. The error of what it remembers of the same video. Where
  each pass keeps a state, B cannot be given a sample: then these are B's states after a guided chunk.
- free-running: B goes its own way from the first chunk. The two part, as any two chaotic trajectories do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videossm.calib.backend import ShadowBackend, Tensors
from videossm.calib.contender import Contender, batch_of
from videossm.calib.record import RecordingError, started
from videossm.runtime import Plan, Rollout
from videossm.runtime.manifest import EngineSpec, Manifest, state_read
from videossm.runtime.window import Ring

Array = NDArray[np.floating]
StateErrors = dict[tuple[str, int], tuple[float, float] | None]  # by (kind, layer); None while A's is still zero
PEAK = 255.0


@dataclass(frozen=True)
class SampleError:
    """`sample`: relative error and cosine; `psnr_db` of the frames, None where they are equal."""

    sample: tuple[float, float]
    psnr_db: float | None


@dataclass(frozen=True)
class Measured:
    """One chunk of one rollout. Relative errors and cosines, by what they are of."""

    passes: list[tuple[float, float]]  # of what each pass changes
    guided: SampleError
    states: StateErrors
    free: SampleError | None  # None where it was not asked for


class Comparison:
    """Contender `b` beside `a`, whose engines are loaded once, for any number of rollouts.

    `prompt`: any that the plans know, None without text. `free_running`: B on its own is measured too.
    """

    def __init__(self, a: Contender, b: Contender, prompt: str | None, free_running: bool) -> None:
        manifest = a.plan.manifest
        self._passes, self._states = _PassErrors(manifest), _StateErrors(manifest)
        files = {name: b.file(name) for name in manifest.pass_engines}
        shadow = ShadowBackend(a.backend(), b.backend(), files, self._passes.ran)
        self._leader = Rollout(a.plan, batch_of(prompt, a.plan), backend=shadow)
        self._guided = b.rollout(prompt, 0)
        self._fed = None if any(state.per_pass for state in manifest.states) else self._guided.fork()
        self._free = self._guided.fork() if free_running else None
        self._fresh = self._leader.snapshot()

    @property
    def rollouts(self) -> int:
        """How many chunks are made, by A or B, for each chunk of `errors`; taking a given one costs next to nothing."""
        return 3 + (self._free is not None)

    def errors(self, prompt: str | None, seed: int, chunks: int) -> Iterator[Measured]:
        """Of a new rollout, chunk by chunk. Raises RecordingError for a value that is not finite."""
        self._passes.start()
        start = started(self._fresh, prompt, seed)
        for rollout in filter(None, (self._leader, self._fed, self._free)):
            rollout.restore(start)
        for index in range(chunks):
            yield self._chunk(index)

    def _chunk(self, index: int) -> Measured:
        leader, keeper = self._leader, self._fed or self._guided
        self._guided.restore(leader.snapshot())
        frames = next(leader).frames
        guided = self._sample_error(self._guided, frames, f"chunk {index}")
        if self._fed is not None:
            self._fed.append(leader.sample)
        return Measured(
            passes=self._passes.taken(),
            guided=guided,
            states=self._states.errors(index, leader.snapshot().tensors, keeper.snapshot().tensors),
            free=self._sample_error(self._free, frames, f"chunk {index}, free-running") if self._free else None,
        )

    def _sample_error(self, rollout: Rollout, frames: NDArray[np.uint8], where: str) -> SampleError:
        """Of the next chunk of `rollout` against the leader's last one, whose frames are `frames`."""
        chunk = next(rollout)
        return SampleError(
            sample=_finite(difference(self._leader.sample, rollout.sample), f"{where}: sample"),
            psnr_db=psnr_db(frames, chunk.frames),
        )


class _PassErrors:
    """Collects the error of what each pass of a chunk changes."""

    def __init__(self, manifest: Manifest) -> None:
        self._passes = [_Change.of(manifest, index) for index in range(len(manifest.passes))]
        self.start()

    def start(self) -> None:
        """A new rollout begins."""
        self._errors: list[tuple[float, float]] = []
        self._chunk = 0

    def ran(self, engine: str, inputs: Tensors, first: Tensors, second: Tensors) -> None:
        index = len(self._errors)
        change = self._passes[index]
        pair = difference(change.made(inputs, first), change.made(inputs, second))
        self._errors.append(_finite(pair, f"chunk {self._chunk}, pass {index}: {change.what}"))

    def taken(self) -> list[tuple[float, float]]:
        """Those of the last chunk."""
        errors, self._errors = self._errors, []
        self._chunk += 1
        return errors


@dataclass(frozen=True)
class _Change:
    """What a pass is judged by: what it makes of the sample, or else the outputs in `states`."""

    what: str
    states: tuple[str, ...] = ()
    before: str = ""  # the sample's names, before and after the pass
    after: str = ""

    @staticmethod
    def of(manifest: Manifest, index: int) -> _Change:
        """A committing pass is judged by the states that it writes for later chunks' passes, and calls before them."""
        spec, committing = manifest.engines[manifest.passes[index].engine], manifest.passes[index].commits
        engines = [manifest.engines[name] for name in (*manifest.pass_engines, *manifest.called("before"))]
        read = {tensor.source for engine in engines for tensor in engine.inputs}
        states = [tensor for tensor in spec.outputs if state_read(tensor.target) is not None]
        kept = tuple(tensor.name for tensor in states if tensor.target in read)
        before, after = _sample_ends(spec)
        if before and after and not (committing and kept):
            return _Change("change of the sample", before=before, after=after)
        return _Change("states", kept or tuple(tensor.name for tensor in spec.outputs))

    def made(self, inputs: Tensors, outputs: Tensors) -> Array:
        if self.states:
            return np.concatenate([outputs[name].ravel() for name in self.states])
        return outputs[self.after] - inputs[self.before]


def _sample_ends(spec: EngineSpec) -> tuple[str, str]:
    """The names of the sample before and after the engine; empty where it does not read or write it."""
    before = next((tensor.name for tensor in spec.inputs if tensor.source == "sample"), "")
    return before, next((tensor.name for tensor in spec.outputs if tensor.target == "sample"), "")


class _StateErrors:
    """Compares what two rollouts remember, by kind and layer."""

    def __init__(self, manifest: Manifest) -> None:
        self._ring = Ring(manifest.window) if manifest.window is not None else None
        self._parts: dict[tuple[str, int], tuple[bool, list[str]]] = {}  # is it a ring's, names in a state
        kinds: dict[str, int] = {}
        for state in manifest.states:
            if state.kind in ("ring", "carry"):
                kind = re.sub(r"\d+", "*", state.name)
                names = [f"{state.name}@{i}" for i in range(len(manifest.passes))] if state.per_pass else [state.name]
                self._parts[kind, kinds.get(kind, 0)] = state.kind == "ring", names
                kinds[kind] = kinds.get(kind, 0) + 1

    def errors(self, chunk: int, a: Tensors, b: Tensors) -> StateErrors:
        """Of a ring only what this chunk put in; of what is carried all, the copies of all passes together."""
        found: StateErrors = {}
        for key, (in_ring, names) in self._parts.items():
            first, second = (
                np.concatenate([self._last(side[name], chunk, in_ring).ravel() for name in names]) for side in (a, b)
            )
            found[key] = _finite(difference(first, second), f"chunk {chunk}: {names[0]}") if first.any() else None
        return found

    def _last(self, values: Array, chunk: int, in_ring: bool) -> Array:
        if not in_ring or self._ring is None:
            return values
        size = values.shape[1] // self._ring.window.chunks
        start = self._ring.chunk_slot(chunk) * size
        return values[:, start : start + size]


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


def comparable(plan: Plan) -> dict[str, object]:
    """What two plans must have in common to be compared, by the field of the manifest."""
    manifest = plan.manifest
    return {
        "name": manifest.name,
        "model": manifest.model,
        "stream": manifest.stream,
        "passes": manifest.passes,
        "states": [state.model_copy(update={"dtype": "float32"}) for state in manifest.states],
    }
