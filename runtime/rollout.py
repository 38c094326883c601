"""The rollout: an endless stream of chunks from a plan and a prompt."""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.backends import Backend, DeviceUsage, open_backend
from videossm.runtime.chunk import Chunk
from videossm.runtime.errors import PromptError, StateError, UserError
from videossm.runtime.noise import noise
from videossm.runtime.passes import Passes
from videossm.runtime.plan import Plan
from videossm.runtime.prompt import PromptTokenizer
from videossm.runtime.state import StateHeader, check_tensors, load_state, save_state
from videossm.runtime.window import Ring


@dataclass(frozen=True)
class Snapshot:
    """All that the next chunk depends on, copied to the host; of use to any rollout of a plan with the same state."""

    header: StateHeader
    tensors: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Prompts:
    """One for each stream of the batch, with what the tokenizer makes of them, [B, L] int64."""

    texts: list[str]
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]

    def means(self, other: _Prompts | None) -> bool:
        """Is it the same to the model, however it is spelt?"""
        return other is not None and np.array_equal(self.ids, other.ids) and np.array_equal(self.mask, other.mask)


class Rollout:
    """An iterator over the chunks of a video that never ends.

    One thread iterates, saves and forks; `cancel` and `set_prompt` may be called from any other. An exception
    that cuts a change of the state in two, as a second Ctrl-C may, makes it refuse to go on (StateError).
    """

    def __init__(
        self,
        plan: Plan,
        prompt: str | Sequence[str],
        seed: SupportsIndex | Sequence[SupportsIndex] = 0,
        device: str | None = None,
        threads: int | None = None,
        backend: Backend | None = None,
        provider: str | None = None,
    ) -> None:
        """`prompt` and `seed`: one for each stream of the batch (a single seed s stands for s, s + 1, ..).

        `device`, `threads`, `provider`: see `open_backend`. `backend`: an open one, in place of the plan's own.
        Raises PromptError, BackendError or, for a seed, UserError.
        """
        manifest = plan.manifest
        self.plan = plan
        self.seeds = _seeds(seed, manifest.stream.batch)
        self._tokenizer = PromptTokenizer(plan.tokenizer_file, manifest.text.length)
        self._lock = threading.Lock()  # around the pending prompts
        self._pending: _Prompts | None = None
        self._prompts: _Prompts | None = None  # in force
        self.set_prompt(prompt)  # before the engines load: a wrong one is told at once
        if backend is None:
            host_code = manifest.target is not None and manifest.target.version_compatible
            backend = open_backend(manifest.backend, device, threads, manifest.precision, provider, host_code)
        self._backend = backend
        engines = {name: backend.load(name, spec, plan.path / spec.file) for name, spec in manifest.engines.items()}
        self._passes = Passes(manifest, backend, engines)
        self._ring = Ring.of(manifest.stream)
        self._chunk = 0
        self._torn = False  # the buffers lie between two chunks
        self._cancelled = threading.Event()

    def __iter__(self) -> Rollout:
        return self

    def __next__(self) -> Chunk:
        """The next chunk, queued. After `cancel` it stops once; the call after that makes the same chunk anew."""
        self._check_whole()
        self._stop_if_cancelled()
        self._switch_prompt()
        self._denoise()
        self._commit()
        self._evict()
        return self._decode()

    def append(self, latent: NDArray[np.float32]) -> Chunk:
        """Takes a clean `latent` [B, F, C, h, w] as the next chunk, instead of making one: to go on from a given video.

        Raises UserError for another shape.
        """
        self._check_whole()
        if latent.shape != self._passes.latent_shape:
            expected = list(self._passes.latent_shape)
            raise UserError(f"latent: got shape {list(latent.shape)}, expected {expected}; encode it for this plan")
        self._switch_prompt()
        self._place(self._chunk, self._ring.held(self._chunk))
        self._passes.put(latent)
        self._commit()
        self._evict()
        return self._decode()

    @property
    def next_index(self) -> int:
        """Index of the chunk that comes next."""
        return self._chunk

    @property
    def prompts(self) -> list[str]:
        """What the next chunk will follow, one for each stream of the batch."""
        following = self._pending or self._prompts
        return list(following.texts) if following else []

    @property
    def latent(self) -> NDArray[Any]:
        """The clean latent [B, F, C, h, w] of the last chunk, a copy. Raises StateError before the first one."""
        self._check_whole()
        if not self._chunk:
            raise StateError("rollout: got no chunk yet, expected one; call next(rollout) first")
        return self._passes.latent(self._ring.chunk_slot(self._chunk - 1))

    @property
    def timings(self) -> dict[str, float]:
        """Seconds that each engine has taken so far, of the GPU's time if it runs there; waits for what is queued."""
        return self._passes.timings()

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""
        return self._backend.device

    @property
    def device_usage(self) -> DeviceUsage | None:
        """What the rollouts of this backend have taken of the GPU; None on a CPU."""
        return self._backend.usage()

    def set_prompt(self, prompt: str | Sequence[str]) -> None:
        """Takes effect at the start of the next chunk; a wrong prompt raises PromptError here."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        batch = self.plan.manifest.stream.batch
        if len(prompts) != batch:
            raise PromptError(f"prompt: got {len(prompts)}, expected {batch}, the plan's batch; add or drop some")
        encoded = _Prompts(prompts, *self._tokenizer.encode(prompts))
        with self._lock:
            self._pending = encoded

    def cancel(self) -> None:
        """Ends the iteration before its next chunk or denoising step. The state stays that after the last chunk."""
        self._cancelled.set()

    def snapshot(self) -> Snapshot:
        """The state of the stream as it is now."""
        self._check_whole()
        prompts, pending = self._prompts, self._pending
        header = StateHeader(
            prompts=prompts.texts if prompts else [],
            next_prompts=pending.texts if pending else None,
            seeds=self.seeds,
            chunk=self._chunk,
        )
        return Snapshot(header, {name: buffer.read() for name, buffer in self._passes.state().items()})

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from `snapshot`. Raises StateError, and changes nothing, when its tensors are of another plan."""
        self._restore("snapshot", snapshot)

    def save(self, path: str | Path) -> None:
        """Writes the state of the stream, whole or not at all. Raises StateError."""
        snapshot = self.snapshot()
        save_state(path, self.plan, snapshot.header, snapshot.tensors)

    @classmethod
    def resume(
        cls,
        plan: Plan,
        path: str | Path,
        device: str | None = None,
        threads: int | None = None,
        provider: str | None = None,
    ) -> Rollout:
        """The rollout as it was when `save` wrote `path`: its next chunks are bit-identical. Raises StateError."""
        header, tensors = load_state(path, plan)
        prompts = header.next_prompts or header.prompts
        rollout = cls(plan, prompts, header.seeds, device, threads, provider=provider)
        rollout._restore(f"state: {path}", Snapshot(header, tensors))
        return rollout

    def fork(self) -> Rollout:
        """An independent rollout that goes on from the same state, over the same engines, in the same thread."""
        self._check_whole()
        other = copy.copy(self)
        other._passes = self._passes.fork()
        other._lock = threading.Lock()
        other._cancelled = threading.Event()
        return other

    def _restore(self, where: str, snapshot: Snapshot) -> None:
        header, buffers = snapshot.header, self._passes.state()
        check_tensors(where, snapshot.tensors, {name: (b.shape, b.dtype) for name, b in buffers.items()})
        following, prompts = (
            _Prompts(texts, *self._tokenizer.encode(texts)) if texts else None
            for texts in (header.next_prompts, header.prompts)
        )
        self._torn = True
        for name, buffer in buffers.items():
            buffer.write(snapshot.tensors[name])
        if prompts is None:
            self._prompts = None
        elif not prompts.means(self._prompts):
            self._encode(prompts)
        with self._lock:
            self._pending = following
        self.seeds, self._chunk = list(header.seeds), header.chunk
        self._torn = False

    def _switch_prompt(self) -> None:
        """A new prompt recomputes the window, chunk by chunk in video order; the memory stays."""
        self._torn = True
        with self._lock:
            pending, self._pending = self._pending, None
        if pending is not None and pending.means(self._prompts):
            self._prompts = pending
        elif pending is not None:
            self._encode(pending)
            self._recompute()
        self._torn = False

    def _encode(self, prompts: _Prompts) -> None:
        self._passes.encode_prompt(prompts.ids, prompts.mask)
        self._prompts = prompts

    def _recompute(self) -> None:
        held = self._ring.held(self._chunk)
        for count, chunk in enumerate(held):
            chunk_slot = self._ring.chunk_slot(chunk)
            self._place(chunk, held[:count])
            self._passes.recall(chunk_slot)
            self._passes.commit()
            self._passes.store(chunk_slot)

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
        chunk_slot = self._ring.chunk_slot(self._chunk)
        self._torn = True
        if self._ring.evicts(self._chunk):
            self._passes.evict(chunk_slot)
        self._passes.store(chunk_slot)

    def _decode(self) -> Chunk:
        chunk = Chunk(self._chunk, self._chunk * self.plan.chunk_seconds, self._passes.decode())
        self._chunk += 1
        self._torn = False
        return chunk

    def _place(self, chunk: int, visible: Sequence[int]) -> None:
        self._passes.place(*self._ring.positions(chunk, visible), self._ring.rho(self._chunk))

    def _noise(self, step: int) -> NDArray[np.float32]:
        shape = self._passes.latent_shape[1:]
        return np.stack([noise(seed, self._chunk, step, shape) for seed in self.seeds])

    def _check_whole(self) -> None:
        if self._torn:
            raise StateError(
                "rollout: interrupted within a chunk, whose state is lost, expected a whole one; "
                "resume from a saved state"
            )

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            self._cancelled.clear()
            raise StopIteration


def _seeds(seed: SupportsIndex | Sequence[SupportsIndex], batch: int) -> list[int]:
    try:
        if isinstance(seed, Iterable):
            seeds = [operator.index(value) for value in seed]
        else:
            seeds = [operator.index(seed) + stream for stream in range(batch)]
    except TypeError as error:
        raise UserError(f"seed: got {seed!r}, expected whole numbers; choose others") from error
    if len(seeds) != batch:
        raise UserError(f"seed: got {len(seeds)}, expected {batch}, the plan's batch; add or drop some")
    for value in seeds:
        if not 0 <= value < 1 << 64:
            raise UserError(f"seed: got {value}, expected 0 or more and less than 2**64; choose another")
    return seeds
