"""The rollout: an endless stream of chunks from a plan and a prompt."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.backends import open_backend
from videossm.runtime.errors import PromptError, UserError
from videossm.runtime.manifest import Manifest
from videossm.runtime.noise import noise
from videossm.runtime.passes import Passes
from videossm.runtime.plan import Plan
from videossm.runtime.prompt import PromptTokenizer
from videossm.runtime.state import StateHeader, check_tensors, load_state, save_state
from videossm.runtime.window import Ring

_SHARED_WORK = 5e9  # bytes of weights x tokens of a chunk, from which on a second thread pays


@dataclass(frozen=True)
class Chunk:
    """`frames`: uint8 [T, H, W, 3], or [B, T, H, W, 3] for a plan of batch B > 1; the caller's to keep."""

    index: int
    start_s: float  # time of the first frame in the video
    frames: NDArray[np.uint8]


class Rollout:
    """An iterator over the chunks of a video that never ends.

    One thread iterates, saves and forks; `cancel` and `set_prompt` may be called from any other.
    """

    def __init__(
        self,
        plan: Plan,
        prompt: str | Sequence[str],
        seed: int | Sequence[int] = 0,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """`prompt` and `seed`: one for each batch slot (a single seed s stands for s, s + 1, ..).

        `device` is `cpu` or `cuda:N`. `threads` are those of a CPU; None for one a physical core, or a single
        one where a step is too small to share.
        Raises PromptError, BackendError or, for a seed, UserError.
        """
        manifest = plan.manifest
        self.plan = plan
        self.seeds = _seeds(seed, manifest.stream.batch)
        self._tokenizer = PromptTokenizer(plan.tokenizer_file, manifest.text.length)
        self._prompts: list[str] = []  # in force
        self.set_prompt(prompt)  # before the engines load: a wrong one is told at once
        backend = open_backend(manifest.backend, device, _useful_threads(manifest) if threads is None else threads)
        engines = {name: backend.load(name, spec, plan.path / spec.file) for name, spec in manifest.engines.items()}
        self._passes = Passes(manifest, backend, engines)
        self._ring = Ring.of(manifest.stream)
        self._chunk = 0
        self._cancelled = threading.Event()

    def __iter__(self) -> Rollout:
        return self

    def __next__(self) -> Chunk:
        """The next chunk. After `cancel` it stops once; the call after that makes the same chunk anew."""
        self._switch_prompt()
        self._denoise()
        self._commit()
        self._evict()
        return self._decode()

    @property
    def next_index(self) -> int:
        """Index of the chunk that comes next."""
        return self._chunk

    @property
    def prompts(self) -> list[str]:
        """What the next chunk will follow, one for each batch slot."""
        return list(self._next_prompts or self._prompts)

    @property
    def latent(self) -> NDArray[Any]:
        """The clean latent [B, F, C, h, w] of the last chunk, a copy."""
        return self._passes.latent()

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent inside each engine so far."""
        return self._passes.timings

    def set_prompt(self, prompt: str | Sequence[str]) -> None:
        """Takes effect at the start of the next chunk; a wrong prompt raises PromptError here."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        batch = self.plan.manifest.stream.batch
        if len(prompts) != batch:
            raise PromptError(f"prompt: got {len(prompts)}, expected {batch}, the plan's batch; add or drop some")
        self._tokenizer.encode(prompts)
        self._next_prompts: list[str] | None = prompts

    def cancel(self) -> None:
        """Ends the iteration before its next step. The state stays that after the last whole chunk."""
        self._cancelled.set()

    def save(self, path: str | Path) -> None:
        """Writes the state of the stream, whole or not at all. Raises StateError."""
        header = StateHeader(
            prompts=self._prompts, next_prompts=self._next_prompts, seeds=self.seeds, chunk=self._chunk
        )
        save_state(path, self.plan, header, {name: buffer.read() for name, buffer in self._passes.state().items()})

    @classmethod
    def resume(cls, plan: Plan, path: str | Path, device: str = "cpu", threads: int | None = None) -> Rollout:
        """The rollout as it was when `save` wrote `path`: its next chunks are bit-identical. Raises StateError."""
        header, tensors = load_state(path, plan)
        rollout = cls(plan, header.next_prompts or header.prompts, header.seeds, device, threads)
        buffers = rollout._passes.state()
        check_tensors(path, tensors, {name: (buffer.shape, buffer.dtype) for name, buffer in buffers.items()})
        for name, buffer in buffers.items():
            buffer.write(tensors[name])
        rollout._chunk = header.chunk
        if header.prompts:
            rollout._encode(header.prompts)
        return rollout

    def fork(self) -> Rollout:
        """An independent rollout that goes on from the same state, over the same engines."""
        other = copy.copy(self)
        other._passes = self._passes.fork()
        other._cancelled = threading.Event()
        return other

    def _switch_prompt(self) -> None:
        """A new prompt recomputes the window, chunk by chunk in video order; the memory stays."""
        prompts, self._next_prompts = self._next_prompts, None
        if prompts is None or prompts == self._prompts:
            return
        self._encode(prompts)
        held = self._ring.held(self._chunk)
        for count, chunk in enumerate(held):
            slot = self._ring.slot(chunk)
            self._place(chunk, held[:count])
            self._passes.recall(slot)
            self._passes.commit()
            self._passes.store(slot)

    def _encode(self, prompts: list[str]) -> None:
        self._passes.encode_prompt(*self._tokenizer.encode(prompts))
        self._prompts = prompts

    def _denoise(self) -> None:
        """From noise to the clean latent. Raises StopIteration when cancelled."""
        renoise = self.plan.manifest.sampler.kind == "renoise"
        self._place(self._chunk, self._ring.held(self._chunk))
        self._passes.start(self._noise(0))
        for step in range(self._passes.steps):
            self._stop_if_cancelled()
            if renoise and step + 1 < self._passes.steps:
                self._passes.freshen(self._noise(step + 1))
            self._passes.denoise(step)
        self._stop_if_cancelled()

    def _commit(self) -> None:
        self._passes.commit()

    def _evict(self) -> None:
        """Makes room in the window through the memory, and moves the committed chunk in."""
        slot = self._ring.slot(self._chunk)
        if self._ring.evicts(self._chunk):
            self._passes.evict(slot)
        self._passes.store(slot)

    def _decode(self) -> Chunk:
        frames = self._passes.decode()
        chunk = Chunk(self._chunk, self._chunk * self.plan.chunk_seconds, frames if len(frames) > 1 else frames[0])
        self._chunk += 1
        return chunk

    def _place(self, chunk: int, visible: Sequence[int]) -> None:
        self._passes.place(*self._ring.positions(chunk, visible), self._ring.rho(self._chunk))

    def _noise(self, step: int) -> NDArray[np.float32]:
        shape = self._passes.latent_shape[1:]
        return np.stack([noise(seed, self._chunk, step, shape) for seed in self.seeds])

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            self._cancelled.clear()
            raise StopIteration


def _useful_threads(manifest: Manifest) -> int | None:
    """1 for a plan whose steps are too small to share, None (one a physical core) for all others.

    Measured with 22 MB of weights on two idle cores, ms a chunk with one and two threads: 48 tokens 51 and 55,
    192 tokens 130 and 124, 384 tokens 260 and 220; beside another busy process 48 tokens take 45 and 70.
    """
    present = {pair.present for pair in manifest.window}
    tokens = [math.prod(tensor.shape[:2]) for tensor in manifest.engines.step.outputs if tensor.name in present]
    weights_bytes = sum(file.size_bytes for file in manifest.files.values())
    return 1 if weights_bytes * max(tokens, default=0) < _SHARED_WORK else None


def _seeds(seed: int | Sequence[int], batch: int) -> list[int]:
    seeds = [seed + slot for slot in range(batch)] if isinstance(seed, int) else list(seed)
    if len(seeds) != batch:
        raise UserError(f"seed: got {len(seeds)}, expected {batch}, the plan's batch; add or drop some")
    for value in seeds:
        if not 0 <= value < 1 << 64:
            raise UserError(f"seed: got {value}, expected 0 or more and less than 2**64; choose another")
    return seeds
