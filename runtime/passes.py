"""Every buffer of one rollout, and every engine call over them, bound once.

Nothing is moved between denoising steps: latents, memory and decoder caches lie in pairs of buffers, and
a pass is bound for each side that a pair can be on. What the host writes in a chunk is the noise, the
positions and rho.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.runtime import contract
from videossm.runtime.backends import Backend, Buffer, Engine, Pass, Transfer
from videossm.runtime.manifest import Manifest, TensorSpec
from videossm.runtime.window import Ring

_Buffers = dict[str, Buffer]


class _Pair:
    """Two sets of buffers that change roles: what is read now, and what is written for the next time."""

    def __init__(self, backend: Backend, tensors: Iterable[TensorSpec]) -> None:
        tensors = list(tensors)
        self.sides = [_buffers(backend, tensors), _buffers(backend, tensors)]
        self.side = 0

    @property
    def current(self) -> _Buffers:
        return self.sides[self.side]

    def swap(self) -> None:
        self.side = 1 - self.side


class Passes:
    """The engines over one rollout's buffers."""

    def __init__(self, manifest: Manifest, backend: Backend, engines: Mapping[str, Engine]) -> None:
        self._manifest, self._backend, self._engines = manifest, backend, engines
        self._watches = {name: backend.stopwatch() for name in engines}
        self.steps = len(manifest.sampler.sigmas)
        self._take_memory()
        self._bind()

    def encode_prompt(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> None:
        """Token ids and attention mask [B, L] become the prompt state."""
        self._text[contract.INPUT_IDS].write(ids)
        self._text[contract.ATTENTION_MASK].write(mask)
        self._run("text_encoder", self._encode)

    def place(self, slots: Sequence[int], frames: Sequence[int], rho: float) -> None:
        """What the step must know of the ring: positions of slots and of this chunk's frames, and rho."""
        self._controls[contract.SLOT_POSITION].write(np.array(slots, np.int64))
        self._controls[contract.FRAME_POSITION].write(np.array(frames, np.int64))
        if contract.RHO in self._controls:
            self._controls[contract.RHO].write(np.array([rho], np.float32))

    def start(self, noise: NDArray[np.float32]) -> None:
        """The chunk's first noise [B, F, C, h, w]."""
        self._latents[0].write(noise)

    def put(self, latent: NDArray[np.float32]) -> None:
        """A clean latent [B, F, C, h, w] from outside, as if it had been denoised."""
        self._committed[contract.LATENT].write(latent)

    def freshen(self, noise: NDArray[np.float32]) -> None:
        """The fresh noise of the next step, for the `renoise` sampler."""
        self._controls[contract.NOISE].write(noise)

    def denoise(self, step: int) -> None:
        self._run("step", self._denoise[self._memory.side][step])

    def commit(self) -> None:
        """The clean chunk once more at sigma 0: leaves its keys, values and gates."""
        self._run("step", self._commit[self._memory.side])

    def evict(self, chunk_slot: int) -> None:
        """What lies in the chunk slot goes into the memory."""
        if not self._evict:
            return
        self._backend.copy(self._staged[chunk_slot])
        self._run("memory", self._evict[chunk_slot][self._memory.side])
        self._memory.swap()

    def store(self, chunk_slot: int) -> None:
        """What the commit left, and the clean latent, into the chunk slot."""
        self._backend.copy((self._committed[name], part) for name, part in self._chunk_slots[chunk_slot].items())

    def recall(self, chunk_slot: int) -> None:
        """The clean latent of a chunk slot takes the place of the current one."""
        self._backend.copy([(self._chunk_slots[chunk_slot][contract.LATENT], self._committed[contract.LATENT])])

    def latent(self, chunk_slot: int) -> NDArray[Any]:
        """The clean latent [B, F, C, h, w] in the chunk slot, a copy."""
        return self._chunk_slots[chunk_slot][contract.LATENT].read()

    def decode(self) -> Transfer:
        """The clean chunk as frames [B, T, H, W, 3] uint8, on their way to the host."""
        self._run("decoder", self._decode[self._caches.side])
        self._caches.swap()
        return self._frames[contract.FRAMES].read_later()

    def timings(self) -> dict[str, float]:
        """Seconds inside each engine so far; waits for what is queued."""
        return {name: watch.seconds() for name, watch in self._watches.items()}

    def state(self) -> _Buffers:
        """All that the next chunk depends on, but for the prompt: window, memory and decoder caches."""
        parts = {"window": self._ring, "memory": self._memory.current, "cache": self._caches.current}
        return {f"{part}/{name}": buffer for part, buffers in parts.items() for name, buffer in buffers.items()}

    def fork(self) -> Passes:
        """Buffers of its own with the same state, prompt included, over the same engines."""
        other = Passes(self._manifest, self._backend, self._engines)
        mine, its = self.state() | self._prompt, other.state() | other._prompt
        self._backend.copy((mine[name], its[name]) for name in mine)
        return other

    def _run(self, engine: str, bound: Pass) -> None:
        watch = self._watches[engine]
        watch.start()
        bound.run()
        watch.stop()

    def _take_memory(self) -> None:
        manifest, backend = self._manifest, self._backend
        spec, buffer = manifest.engines, backend.buffer
        step_inputs = {tensor.name: tensor for tensor in spec.step.inputs}
        step_outputs = {tensor.name: tensor for tensor in spec.step.outputs}
        latent = step_inputs[contract.LATENT]
        self.latent_shape = latent.shape
        controls = {contract.RHO, contract.NOISE, contract.SLOT_POSITION, contract.FRAME_POSITION}

        self._text = _buffers(backend, spec.text_encoder.inputs)
        self._prompt = _buffers(backend, (step_inputs[name] for name in manifest.prompt))
        self._controls = _buffers(backend, (step_inputs[name] for name in sorted(controls & step_inputs.keys())))
        levels = [*manifest.sampler.sigmas, 0.0, 0.0]  # the last pair of them, (0, 0), is the commit
        self._sigmas = [buffer((1,), "float32") for _ in levels]
        for sigma, level in zip(self._sigmas, levels, strict=True):
            sigma.write(np.array([level], np.float32))
        self._latents = [buffer(latent.shape, latent.host_dtype) for _ in range(2)]
        present = [step_outputs[pair.present] for pair in manifest.window]
        self._present = _buffers(backend, present)
        self._frames = _buffers(backend, (t for t in spec.decoder.outputs if t.name == contract.FRAMES))
        memory_pasts = {pair.past for pair in manifest.memory}
        self._memory = _Pair(
            backend, (t for t in (spec.memory.inputs if spec.memory else ()) if t.name in memory_pasts)
        )
        cache_pasts = {pair.past for pair in manifest.caches}
        self._caches = _Pair(backend, (t for t in spec.decoder.inputs if t.name in cache_pasts))

        # The ring holds what a commit leaves, by the name of its present tensor, and the clean latent.
        self._committed = {contract.LATENT: self._latents[self.steps % 2], **self._present}
        self._ring = {
            tensor.name: buffer(contract.window_shape(manifest, tensor.shape), tensor.host_dtype)
            for tensor in (latent, *present)
        }
        self._chunk_slots = [self._chunk_slot(index) for index in range(Ring.of(manifest.stream).window)]

    def _chunk_slot(self, index: int) -> _Buffers:
        """The parts of the ring that chunk slot `index` covers."""
        size = {name: buffer.shape[1] for name, buffer in self._committed.items()}
        return {name: ring.part(index * size[name], (index + 1) * size[name]) for name, ring in self._ring.items()}

    def _bind(self) -> None:
        sides = range(2)
        self._encode = self._engines["text_encoder"].bind(self._text, self._prompt)
        self._denoise = [[self._bind_step(step, side) for step in range(self.steps)] for side in sides]
        self._commit = [self._bind_step(self.steps, side) for side in sides]
        self._decode = [self._bind_decoder(side) for side in sides]
        self._staged: list[list[tuple[Buffer, Buffer]]] = []
        self._evict: list[list[Pass]] = []
        if "memory" in self._engines:
            self._bind_memory()

    def _bind_step(self, step: int, side: int) -> Pass:
        """Step `step` reads the latent that step - 1 wrote. `side`: where the memory lies."""
        inputs = {
            contract.LATENT: self._latents[step % 2],
            contract.SIGMA: self._sigmas[step],
            contract.SIGMA_NEXT: self._sigmas[step + 1],
            **self._controls,
            **self._prompt,
            **{pair.past: self._ring[pair.present] for pair in self._manifest.window if pair.past is not None},
            **{pair.read: self._memory.sides[side][pair.past] for pair in self._manifest.memory},
        }
        outputs = {contract.LATENT_NEXT: self._latents[(step + 1) % 2], **self._present}
        return self._engines["step"].bind(inputs, outputs)

    def _bind_decoder(self, side: int) -> Pass:
        past, following = self._caches.sides[side], self._caches.sides[1 - side]
        inputs = {contract.LATENTS: self._committed[contract.LATENT], **past}
        outputs = {pair.present: following[pair.past] for pair in self._manifest.caches}
        return self._engines["decoder"].bind(inputs, {**outputs, **self._frames})

    def _bind_memory(self) -> None:
        """The memory engine reads the ring in place where a chunk slot is bindable, else a copy."""
        pairs = [(pair.present, pair.evicted) for pair in self._manifest.window if pair.evicted is not None]
        staging: _Buffers = {}
        for chunk_slot in self._chunk_slots:
            evicted: _Buffers = {}
            copies = []
            for present, name in pairs:
                part = chunk_slot[present]
                if part.bindable:
                    evicted[name] = part
                    continue
                if name not in staging:
                    staging[name] = self._backend.buffer(part.shape, part.dtype)
                evicted[name] = staging[name]
                copies.append((part, staging[name]))
            self._staged.append(copies)
            self._evict.append([self._bind_memory_side(evicted, side) for side in range(2)])

    def _bind_memory_side(self, evicted: _Buffers, side: int) -> Pass:
        past, following = self._memory.sides[side], self._memory.sides[1 - side]
        outputs = {pair.present: following[pair.past] for pair in self._manifest.memory}
        return self._engines["memory"].bind({**evicted, **past}, outputs)


def _buffers(backend: Backend, tensors: Iterable[TensorSpec]) -> _Buffers:
    return {tensor.name: backend.buffer(tensor.shape, tensor.host_dtype) for tensor in tensors}
