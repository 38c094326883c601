"""The program of a manifest over one rollout's buffers: every engine call, bound once to where its tensors lie.

Nothing is moved between passes: the sample and each `carry` state lie in a pair of buffers that change roles, and an
engine is bound for each side that they can be on. What the host writes in a chunk is noise, positions and rho.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.backends import Backend, Buffer, Engine, Pass, Transfer
from videossm.runtime.manifest import SAMPLE, Manifest, State, TensorSpec, state_read

_Buffers = dict[str, Buffer]
_CONTROLS = ("window.slot_position", "window.frame_position", "window.rho", "text.ids", "text.mask", "noise")


class _Carry:
    """States that move on together: two sets of buffers, by state, of which one is read and the other written."""

    def __init__(self, backend: Backend, states: Iterable[State]) -> None:
        states = list(states)
        self.sides = [_buffers(backend, states) for _ in range(2)]
        self.side = 0

    @property
    def current(self) -> _Buffers:
        return self.sides[self.side]

    def swap(self) -> None:
        self.side = 1 - self.side


class _Bound:
    """An engine with its tensors, for every combination of the sides of the carries that it reads or writes."""

    def __init__(self, name: str, carries: Sequence[_Carry], passes: Mapping[tuple[int, ...], Pass]) -> None:
        self.name = name
        self._carries, self._passes = carries, passes

    def run(self) -> None:
        self._passes[tuple(carry.side for carry in self._carries)].run()


class Program:
    """What a rollout asks for, in the terms of the manifest."""

    def __init__(self, manifest: Manifest, backend: Backend, engines: Mapping[str, Engine]) -> None:
        self._manifest, self._backend, self._engines = manifest, backend, engines
        self._watches = {name: backend.stopwatch() for name in engines}
        self._last = len(manifest.passes) - 1
        self._take_memory()
        self._bind()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self._manifest.sample.shape

    @property
    def takes_samples(self) -> bool:
        """Whether a clean sample can take the place of the passes: not where each of them keeps a state of its own."""
        return not self._of_pass

    @property
    def recommits(self) -> bool:
        """Whether a new prompt changes what lies in the window."""
        return self._commits and bool(self._ring) and self._manifest.text is not None

    def encode_prompt(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> None:
        """Token ids and mask [B, L] become the prompt's states."""
        self._write("text.ids", ids)
        self._write("text.mask", mask)
        self._run(self._on_prompt)

    def place(self, slots: Sequence[int], frames: Sequence[int], rho: float) -> None:
        """Positions of the window's frames and of this chunk's, and rho."""
        self._write("window.slot_position", np.array(slots, np.int64))
        self._write("window.frame_position", np.array(frames, np.int64))
        self._write("window.rho", np.array([rho], np.float32))

    def prepare(self) -> None:
        """The calls before the passes."""
        self._run(self._before)

    def start(self, noise: NDArray[np.float32]) -> None:
        """The noise [B, ..] that a chunk starts from."""
        self._samples[0].write(noise)

    def take(self, sample: NDArray[np.float32]) -> None:
        """A clean sample [B, ..] from outside, as if the passes had made it; the one that commits still runs."""
        if self._commits:
            self._samples[self._side_of(self._last)].write(sample)
            self.run_pass(self._last)
        else:
            self._clean.write(sample)

    def freshen(self, noise: NDArray[np.float32]) -> None:
        """Fresh noise [B, ..] for the next pass."""
        self._write("noise", noise)

    def run_pass(self, index: int) -> None:
        """One pass. What it writes to states is read from the next `commit` on, so that a chunk can be given up."""
        self._run([self._passes[index]])

    def commit(self) -> None:
        """The passes of a chunk are done: what they carry moves on."""
        for carry in self._of_pass:
            carry.swap()
        if self._commits:
            self._committing.swap()

    def recommit(self, chunk_slot: int) -> None:
        """Runs the committing pass again on the clean sample in the chunk slot, where what it writes is kept."""
        self._backend.copy([(self._chunk_slots[chunk_slot][SAMPLE], self._samples[self._side_of(self._last)])])
        self._run([self._passes[self._last]])
        self.store(chunk_slot)

    def evict(self, chunk_slot: int) -> None:
        """What lies in the chunk slot goes where the calls at an eviction take it."""
        if self._evict:
            self._backend.copy(self._staged[chunk_slot])
            self._run(self._evict[chunk_slot])
            self._evicting.swap()

    def store(self, chunk_slot: int) -> None:
        """What the committing pass wrote for the ring, and the clean sample, into the chunk slot."""
        self._backend.copy((self._committed[name], part) for name, part in self._chunk_slots[chunk_slot].items())

    def finish(self, first: bool) -> Transfer:
        """The calls after the passes. Returns the frames [B, T, H, W, 3] uint8 on their way to the host."""
        self._run(self._after[first])
        self._finishing.swap()
        return self._frames[first].read_later()

    def clean(self) -> NDArray[Any]:
        """The sample [B, ..] after the last pass, a copy."""
        return self._clean.read()

    def timings(self) -> dict[str, float]:
        """Seconds inside each engine so far; waits for what is queued."""
        return {name: watch.seconds() for name, watch in self._watches.items()}

    def state(self) -> _Buffers:
        """All that the next chunk depends on beside the prompt, by the names of a state file."""
        carried = {name: buffer for carry in self._carries for name, buffer in carry.current.items()}
        for index, carry in enumerate(self._of_pass):
            carried |= {f"{name}@{index}": buffer for name, buffer in carry.current.items()}
        return self._ring | carried

    def fork(self) -> Program:
        """Buffers of its own with the same state, prompt included, over the same engines."""
        other = Program(self._manifest, self._backend, self._engines)
        mine = self.state() | self._prompt | {"": self._clean}
        its = other.state() | other._prompt | {"": other._clean}
        self._backend.copy((mine[name], its[name]) for name in mine)
        return other

    def _run(self, bound: Iterable[_Bound]) -> None:
        for each in bound:
            watch = self._watches[each.name]
            watch.start()
            each.run()
            watch.stop()

    def _write(self, source: str, values: NDArray[Any]) -> None:
        if source in self._controls:
            self._controls[source].write(values)

    def _side_of(self, index: int) -> int:
        """Which of the two samples pass `index` reads: a pass that writes none leaves the sample where it is."""
        writing = self._manifest.passes[:index]
        return sum(_writes(self._manifest, each.engine, "sample") for each in writing) % 2

    def _take_memory(self) -> None:
        manifest, backend = self._manifest, self._backend
        sample = manifest.sample
        read = {tensor.source: tensor for engine in manifest.engines.values() for tensor in engine.inputs}
        self._controls = {s: backend.buffer(read[s].shape, read[s].host_dtype) for s in _CONTROLS if s in read}
        self._no_noise = {}  # zeros for passes that draw none, whatever was drawn before
        if "noise" in read and not all(each.noise for each in manifest.passes):
            self._no_noise["noise"] = backend.buffer(sample.shape, sample.host_dtype)
        self._scalars = [self._scalars_of(each.scalars) for each in manifest.passes]
        self._samples = [backend.buffer(sample.shape, sample.host_dtype) for _ in range(2)]
        self._clean = self._samples[self._side_of(self._last + 1)]
        self._commits = manifest.passes[self._last].commits
        stream = manifest.stream
        lengths = {stream.first_frames, stream.later_frames}
        frames = {n: backend.buffer((stream.batch, n, stream.height, stream.width, 3), "uint8") for n in lengths}
        self._frames = {True: frames[stream.first_frames], False: frames[stream.later_frames]}
        by_kind = {
            kind: [s for s in manifest.states if s.kind == kind] for kind in ("prompt", "chunk", "ring", "carry")
        }
        self._prompt = _buffers(backend, by_kind["prompt"])
        self._held = self._prompt | _buffers(backend, by_kind["chunk"])  # between calls: written once, read by many

        def carried(engines: Iterable[str], per_pass: bool = False) -> list[State]:
            targets = {tensor.target for name in engines for tensor in manifest.engines[name].outputs}
            return [s for s in by_kind["carry"] if f"state.{s.name}" in targets and s.per_pass == per_pass]

        passed = carried(manifest.pass_engines)
        self._evicting = _Carry(backend, carried(manifest.called("evict")))
        self._finishing = _Carry(backend, carried(manifest.called("after", "after_first", "after_later")))
        self._committing = _Carry(backend, passed)
        self._carries = [self._evicting, self._finishing, self._committing]
        per_pass = carried(manifest.pass_engines, per_pass=True)
        self._of_pass = [_Carry(backend, per_pass) for _ in manifest.passes] if per_pass else []

        # The ring keeps what a commit leaves and, where a new prompt needs it again, the clean sample.
        self._present = _buffers(backend, by_kind["ring"])
        kept = manifest.kept()
        self._committed = {name: b for name, b in (self._present | {SAMPLE: self._clean}).items() if name in kept}
        self._ring = _buffers(backend, (kept[name] for name in self._committed))
        chunks = manifest.window.chunks if manifest.window is not None else 0
        self._chunk_slots = [self._chunk_slot(index) for index in range(chunks)]

    def _scalars_of(self, values: Mapping[str, float]) -> _Buffers:
        buffers = {name: self._backend.buffer((1,), "float32") for name in values}
        for name, value in values.items():
            buffers[name].write(np.array([value], np.float32))
        return buffers

    def _chunk_slot(self, index: int) -> _Buffers:
        """The parts of the ring that chunk slot `index` covers."""
        size = {name: buffer.shape[1] for name, buffer in self._committed.items()}
        return {name: ring.part(index * size[name], (index + 1) * size[name]) for name, ring in self._ring.items()}

    def _bind(self) -> None:
        called = self._manifest.called
        self._on_prompt = [self._bound(name) for name in called("prompt")]
        self._before = [self._bound(name) for name in called("before")]
        self._passes = [self._bound(each.engine, index) for index, each in enumerate(self._manifest.passes)]
        self._after = {
            first: [self._bound(name, frames=self._frames[first]) for name in self._called_after(first)]
            for first in (True, False)
        }
        self._staged: list[list[tuple[Buffer, Buffer]]] = []
        self._evict: list[list[_Bound]] = []
        if called("evict"):
            self._bind_evictions(called("evict"))

    def _called_after(self, first: bool) -> list[str]:
        return self._manifest.called("after", "after_first" if first else "after_later")

    def _bind_evictions(self, names: Sequence[str]) -> None:
        """The engines read the ring in place where a chunk slot is bindable, else a copy of it."""
        read = [tensor.source for name in names for tensor in self._manifest.engines[name].inputs]
        wanted = list(dict.fromkeys(source for source in read if source.startswith("evicted.")))
        staging: _Buffers = {}
        for chunk_slot in self._chunk_slots:
            evicted: _Buffers = {}
            copies = []
            for source in wanted:
                part = chunk_slot[str(state_read(source))]
                if not part.bindable:
                    if source not in staging:
                        staging[source] = self._backend.buffer(part.shape, part.dtype)
                    copies.append((part, staging[source]))
                evicted[source] = part if part.bindable else staging[source]
            self._staged.append(copies)
            self._evict.append([self._bound(name, evicted=evicted) for name in names])

    def _bound(
        self, name: str, index: int | None = None, evicted: _Buffers | None = None, frames: Buffer | None = None
    ) -> _Bound:
        """Engine `name`, in pass `index` if it is one, with the tensors of an eviction or the frames that it makes."""
        spec = self._manifest.engines[name]
        touched = {tensor.source for tensor in spec.inputs} | {tensor.target for tensor in spec.outputs}
        known = [*self._carries, *(self._of_pass[index : index + 1] if index is not None else ())]
        carries = [c for c in known if any(f"state.{state}" in touched for state in c.current)]
        fixed = self._sources(index) | (evicted or {})
        passes = {}
        for sides in itertools.product(range(2), repeat=len(carries)):
            pairs = list(zip(carries, sides, strict=True))
            past = {f"state.{n}": b for carry, side in pairs for n, b in carry.sides[side].items()}
            following = {f"state.{n}": b for carry, side in pairs for n, b in carry.sides[1 - side].items()}
            targets = self._targets(index, following) | ({"frames": frames} if frames is not None else {})
            inputs = {tensor.name: (fixed | past)[tensor.source] for tensor in spec.inputs}
            outputs = {tensor.name: targets[tensor.target] for tensor in spec.outputs}
            passes[sides] = self._engines[name].bind(inputs, outputs)
        return _Bound(name, carries, passes)

    def _sources(self, index: int | None) -> _Buffers:
        """What engines read that lies in one place."""
        found = self._controls | {f"state.{name}": b for name, b in (self._held | self._ring).items()}
        found["clean"] = self._clean
        if index is not None:
            found["sample"] = self._samples[self._side_of(index)]
            if not self._manifest.passes[index].noise:
                found |= self._no_noise
            found |= {f"pass.{name}": buffer for name, buffer in self._scalars[index].items()}
        return found

    def _targets(self, index: int | None, following: _Buffers) -> _Buffers:
        """Where engines write to. `following`: the sides of carries that are written."""
        found = {f"state.{name}": b for name, b in (self._held | self._present).items()} | following
        if index is not None:
            found["sample"] = self._samples[1 - self._side_of(index)]
        return found


def buffer_bytes(manifest: Manifest) -> int:
    """What the buffers of one rollout take, without the copies of evicted parts that lie in several pieces."""
    sources = {tensor.source: tensor for engine in manifest.engines.values() for tensor in engine.inputs}
    controls = sum(sources[name].size_bytes for name in _CONTROLS if name in sources)
    sample, stream = manifest.sample.size_bytes, manifest.stream
    zeros = sample if "noise" in sources and not all(each.noise for each in manifest.passes) else 0
    scalars = 4 * sum(len(each.scalars) for each in manifest.passes)
    pixels = 3 * stream.batch * stream.height * stream.width
    frames = pixels * sum({stream.first_frames, stream.later_frames})
    kept = manifest.kept()
    rewritten = [state.name for state in manifest.states if state.kind == "carry"]
    doubled = sum(tensor.size_bytes for name, tensor in kept.items() if name.partition("@")[0] in rewritten)
    written = sum(state.size_bytes for state in manifest.states if state.kind != "carry")
    return (
        controls + zeros + scalars + 2 * sample + frames + sum(t.size_bytes for t in kept.values()) + doubled + written
    )


def _writes(manifest: Manifest, engine: str, target: str) -> bool:
    return any(tensor.target == target for tensor in manifest.engines[engine].outputs)


def _buffers(backend: Backend, tensors: Iterable[TensorSpec]) -> _Buffers:
    return {tensor.name: backend.buffer(tensor.shape, tensor.host_dtype) for tensor in tensors}
