"""The rollout: a stream of chunks from a plan and a prompt."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.backends import Backend, DeviceUsage
from videossm.runtime.chunk import Chunk
from videossm.runtime.errors import PromptError, StateError, UserError
from videossm.runtime.loaded_plan import LoadedPlan
from videossm.runtime.noise import noise, stream_seeds
from videossm.runtime.plan import Plan
from videossm.runtime.program import Program
from videossm.runtime.prompt import EncodedPrompts, open_tokenizer
from videossm.runtime.state import Snapshot, StateHeader, check_header, check_tensors, load_state, save_state
from videossm.runtime.window import Ring


class Rollout:
    """An iterator over the chunks of a video: `for chunk in Rollout(plan, prompt)`. A clip ends, a stream does not.

    One thread iterates, saves and forks; `cancel` and `set_prompt` may be called from any other. After an exception in
    the middle of a change of the state it refuses to go on (StateError). Closed by `with` or `close`.
    """

    def __init__(
        self,
        plan: Plan | LoadedPlan,
        prompt: str | Sequence[str] | None = None,
        seed: SupportsIndex | Sequence[SupportsIndex] = 0,
        device: str | None = None,
        threads: int | None = None,
        backend: Backend | None = None,
        provider: str | None = None,
    ) -> None:
        """`prompt` and `seed`: one for each stream of the batch (a single seed s stands for s, s + 1, ..).

        A plan without text takes no prompt. `device`, `threads`, `backend`, `provider`: see `LoadedPlan`; a loaded
        plan has its own, shares its engines with other rollouts, and stays open when the rollout is closed.
        Raises PromptError, BackendError, PreflightError for too little memory or, for a seed, UserError.
        """
        loaded = plan if isinstance(plan, LoadedPlan) else None
        self.plan = plan if isinstance(plan, Plan) else plan.plan
        manifest = self.plan.manifest
        self.seeds = stream_seeds(seed, manifest.stream.batch)
        self._tokenizer = loaded.tokenizer if loaded else open_tokenizer(self.plan)
        self._lock = threading.Lock()  # around the pending prompts
        self._pending: EncodedPrompts | None = None
        self._prompts: EncodedPrompts | None = None  # in force
        if prompt is not None or manifest.text:
            self.set_prompt(() if prompt is None else prompt)  # before the engines load: a wrong one is told at once
        self._ring = Ring(manifest.window) if manifest.window else None
        self._chunk = 0
        self._torn = False  # the buffers lie between two chunks
        self._made = False  # the buffers hold the sample of the last chunk
        self._cancelled = threading.Event()
        self._owns = loaded is None  # what it has loaded, and not its forks
        self._loaded = loaded or LoadedPlan(self.plan, device, threads, backend, provider)
        try:
            self._program = Program(manifest, self._loaded.backend, self._loaded.engines)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Rollout:
        return self

    def __enter__(self) -> Rollout:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back what the rollout took of the device, and ends its forks. Frames that were read stay."""
        if self._owns:
            self._loaded.close()

    def __next__(self) -> Chunk:
        """The next chunk, queued. After `cancel` it stops once; the call after that makes the same chunk anew."""
        self._check_whole()
        self._stop_if_cancelled()
        if self._ended:
            raise StopIteration
        self._switch_prompt()
        self._denoise()
        self._keep()
        return self._finish()

    def play(
        self, chunks: int | None = None, prompts: Mapping[int, str | Sequence[str]] | None = None, ahead: bool = True
    ) -> Iterator[Chunk]:
        """The next `chunks`, without end if None. `prompts`: new ones, by the index of the chunk that they start with.

        With `ahead` a GPU has the next chunk to work on while the frames of one are read, unless those are there
        already; what `save` writes is then the state after the chunk that was queued last.
        """
        behind: Chunk | None = None
        for number in itertools.count() if chunks is None else range(chunks):
            if prompts and self._chunk in prompts:
                self.set_prompt(prompts[self._chunk])
            chunk = next(self, None)
            if chunk is None:
                break
            if behind is not None:
                yield behind
            behind = chunk
            if number == 0 or not ahead or chunk.ready:
                yield chunk
                behind = None
        if behind is not None:
            yield behind

    def append(self, sample: NDArray[np.float32]) -> Chunk:
        """Takes a clean `sample` [B, ..] as the next chunk, instead of making one: to go on from a given video.

        Raises UserError for another shape, and for a plan whose passes each keep a state.
        """
        self._check_whole()
        if self._ended:
            raise UserError(f"sample: got one after the {self._chunk} chunks of the clip, expected none; start another")
        if not self._program.takes_samples:
            raise UserError("sample: got one for a plan whose passes keep states, expected none; make the chunk")
        if sample.shape != self._program.sample_shape:
            expected = list(self._program.sample_shape)
            raise UserError(f"sample: got shape {list(sample.shape)}, expected {expected}; encode it for this plan")
        self._switch_prompt()
        self._prepare(self._chunk)
        self._program.take(sample)
        self._keep()
        return self._finish()

    @property
    def next_index(self) -> int:
        """Index of the chunk that comes next."""
        return self._chunk

    @property
    def prompts(self) -> list[str]:
        """What the next chunk will follow, one for each stream of the batch; empty for a plan without text."""
        following = self._pending or self._prompts
        return list(following.texts) if following else []

    @property
    def sample(self) -> NDArray[Any]:
        """The clean sample [B, ..] of the chunk that was made last, a copy.

        Raises StateError where the buffers hold none: before the first chunk, after a restore or a cancelled chunk.
        """
        self._check_whole()
        if not self._made:
            raise StateError("rollout: got no chunk yet, expected one; call next(rollout) first")
        return self._program.clean()

    @property
    def timings(self) -> dict[str, float]:
        """Seconds that each engine has taken so far, of the GPU's time if it runs there; waits for what is queued."""
        return self._program.timings()

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""
        return self._loaded.backend.device

    @property
    def device_usage(self) -> DeviceUsage | None:
        """What the rollouts of this backend have taken of the GPU; None on a CPU."""
        return self._loaded.backend.usage()

    def set_prompt(self, prompt: str | Sequence[str]) -> None:
        """Takes effect at the start of the next chunk; a wrong prompt raises PromptError here."""
        if self._tokenizer is None:
            raise PromptError("prompt: got one for a plan without text, expected none; leave it out")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        batch = self.plan.manifest.stream.batch
        if len(prompts) != batch:
            raise PromptError(f"prompt: got {len(prompts)}, expected {batch}, the plan's batch; add or drop some")
        encoded = EncodedPrompts(prompts, *self._tokenizer.encode(prompts))
        with self._lock:
            self._pending = encoded

    def cancel(self) -> None:
        """Ends the iteration before its next chunk or pass. The state stays that after the last chunk."""
        self._cancelled.set()

    def snapshot(self) -> Snapshot:
        """The state of the stream as it is now."""
        self._check_whole()
        with self._lock:
            prompts, pending = self._prompts, self._pending
        header = StateHeader(
            prompts=prompts.texts if prompts else [],
            next_prompts=pending.texts if pending else None,
            seeds=self.seeds,
            chunk=self._chunk,
        )
        return Snapshot(header, {name: buffer.read() for name, buffer in self._program.state().items()})

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from `snapshot`. Raises StateError, and changes nothing, when its tensors are of another plan."""
        self._restore("snapshot", snapshot)

    def save(self, path: str | Path) -> None:
        """Writes the state of the stream, whole or not at all. Raises StateError."""
        snapshot = self.snapshot()
        save_state(path, self.plan.manifest, snapshot.header, snapshot.tensors)

    @classmethod
    def resume(
        cls,
        plan: Plan | LoadedPlan,
        path: str | Path,
        device: str | None = None,
        threads: int | None = None,
        provider: str | None = None,
    ) -> Rollout:
        """The rollout as it was when `save` wrote `path`, by this plan or another of the same `stream_identity`.

        The same plan makes the same chunks, bit for bit. Raises StateError.
        """
        header, tensors = load_state(path, plan.manifest)
        prompts = header.next_prompts or header.prompts or None
        rollout = cls(plan, prompts, header.seeds, device, threads, provider=provider)
        try:
            rollout._restore(f"state: {path}", Snapshot(header, tensors))
        except BaseException:
            rollout.close()
            raise
        return rollout

    def fork(self) -> Rollout:
        """An independent rollout that goes on from the same state, over the same engines, in the same thread."""
        self._check_whole()
        other = copy.copy(self)
        other._program = self._program.fork()
        other._owns = False
        other._lock = threading.Lock()
        other._cancelled = threading.Event()
        return other

    def _restore(self, where: str, snapshot: Snapshot) -> None:
        self._check_open()
        header, buffers = snapshot.header, self._program.state()
        check_header(where, header, self.plan.manifest)
        check_tensors(where, snapshot.tensors, {name: (b.shape, b.dtype) for name, b in buffers.items()})
        following, prompts = (
            EncodedPrompts(texts, *self._tokenizer.encode(texts)) if texts and self._tokenizer else None
            for texts in (header.next_prompts, header.prompts)
        )
        self._torn = True
        for name, buffer in buffers.items():
            buffer.write(snapshot.tensors[name])
        if prompts is None:
            self._prompts = None
        elif not prompts.equal(self._prompts):
            self._encode(prompts)
        with self._lock:
            self._pending = following
        self.seeds, self._chunk = list(header.seeds), header.chunk
        self._made = self._torn = False

    def _switch_prompt(self) -> None:
        """A new prompt recomputes the window, chunk by chunk in video order; what was carried stays."""
        self._torn = True
        pending = self._pending
        if pending is not None and pending.equal(self._prompts):
            self._prompts = pending
        elif pending is not None:
            self._encode(pending)
            self._recommit()
        with self._lock:
            if self._pending is pending:  # else another one has come, for the chunk after this
                self._pending = None
        self._torn = False

    def _encode(self, prompts: EncodedPrompts) -> None:
        self._program.encode_prompt(prompts.ids, prompts.mask)
        self._prompts = prompts

    def _recommit(self) -> None:
        if self._ring is None or not self._program.recommits:
            return
        held = self._ring.held(self._chunk)
        for count, chunk in enumerate(held):
            self._prepare(chunk, held[:count])
            self._program.recommit(self._ring.chunk_slot(chunk))

    def _denoise(self) -> None:
        """From noise to the clean sample. Raises StopIteration when cancelled."""
        self._made = False
        self._prepare(self._chunk)
        self._program.start(self._noise(0))
        for index, each in enumerate(self.plan.manifest.passes):
            self._stop_if_cancelled()
            if each.noise:
                self._program.freshen(self._noise(index + 1))
            self._program.run_pass(index)
        self._stop_if_cancelled()

    def _keep(self) -> None:
        """What the passes wrote counts from here on. Makes room in the window, and moves the chunk in."""
        self._torn = True
        self._program.commit()
        if self._ring is not None:
            chunk_slot = self._ring.chunk_slot(self._chunk)
            if self._ring.evicts(self._chunk):
                self._program.evict(chunk_slot)
            self._program.store(chunk_slot)

    def _finish(self) -> Chunk:
        start_s = self.plan.manifest.stream.start_s(self._chunk)
        chunk = Chunk(self._chunk, start_s, self._program.finish(first=self._chunk == 0))
        self._chunk += 1
        self._made, self._torn = True, False
        return chunk

    def _prepare(self, chunk: int, visible: Sequence[int] | None = None) -> None:
        """What the passes of `chunk` read beside the sample. `visible`: chunks of the window; all if None."""
        if self._ring is not None:
            visible = self._ring.held(chunk) if visible is None else visible
            self._program.place(*self._ring.positions(chunk, visible), self._ring.rho(self._chunk))
        self._program.prepare()

    def _noise(self, draw: int) -> NDArray[np.float32]:
        shape = self._program.sample_shape[1:]
        return np.stack([noise(seed, self._chunk, draw, shape) for seed in self.seeds])

    @property
    def _ended(self) -> bool:
        """Whether the clip is over."""
        return self._chunk == self.plan.manifest.stream.chunks

    def _check_open(self) -> None:
        if self._loaded.closed:
            raise StateError("rollout: got a closed one, expected an open one; make another, or resume a saved state")

    def _check_whole(self) -> None:
        self._check_open()
        if self._torn:
            raise StateError(
                "rollout: interrupted within a chunk, whose state is lost, expected a whole one; "
                "resume from a saved state"
            )

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            self._cancelled.clear()
            raise StopIteration
