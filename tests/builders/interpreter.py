"""docs/plan-format.md read aloud: a plan's program over dictionaries of arrays, nothing reused and nothing bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from videossm.runtime.backends.session import session_options
from videossm.runtime.manifest import EngineSpec
from videossm.runtime.noise import noise
from videossm.runtime.plan import Plan
from videossm.runtime.prompt import PromptTokenizer

Values = dict[str, Any]


class Interpreter:
    """Makes the chunks of `plan` one after another."""

    def __init__(self, plan: Plan, prompts: list[str], seeds: list[int]) -> None:
        self.manifest, self.seeds = plan.manifest, seeds
        options = session_options("fp32", 1)
        self._sessions = {
            name: ort.InferenceSession(str(plan.path / spec.file), options, providers=["CPUExecutionProvider"])
            for name, spec in self.manifest.engines.items()
        }
        text = self.manifest.text
        self._tokenizer = PromptTokenizer(plan.tokenizer_file, text) if text else None
        self._waiting: list[str] | None = prompts or None
        self._text: Values = {}
        self.chunk = 0
        self.states = {s.name: np.zeros(s.shape, s.host_dtype) for s in self.manifest.states if s.kind != "ring"}
        self.own = [
            {s.name: np.zeros(s.shape, s.host_dtype) for s in self.manifest.states if s.per_pass}
            for _ in self.manifest.passes
        ]
        self.slots: dict[int, tuple[int, Values]] = {}  # slot -> chunk, its parts of rings and its clean sample

    def set_prompts(self, prompts: list[str]) -> None:
        self._waiting = prompts

    def next(self) -> np.ndarray:
        """Frames [B, T, H, W, 3] uint8."""
        if self._waiting is not None and self._tokenizer is not None:
            self._switch(self._waiting)
        self._waiting = None
        where = self._positions(self.chunk, self._held())
        self._call("before", where)
        sample, own, part = self._denoise(where)
        self.own = own
        if self.manifest.passes[-1].commits:
            self._keep({name: value for name, value in part.items() if name in self.states})
        self._evict()
        self._store(self.chunk, part, sample)
        frames = self._finish(sample)
        self.chunk += 1
        return frames

    def state(self) -> Values:
        """By the names of a state file."""
        found: Values = {}
        for name in self.manifest.kept():
            base, _, index = name.partition("@")
            found[name] = self.own[int(index)][base] if index else self.states.get(base)
        for name, spec in self.manifest.kept().items():
            if found[name] is None:
                found[name] = self._whole(name, spec.shape, spec.host_dtype)
        return found

    def _run(self, engine: str, values: Values) -> Values:
        """Outputs by target."""
        spec: EngineSpec = self.manifest.engines[engine]
        feeds = {tensor.name: values[tensor.source] for tensor in spec.inputs}
        results = self._sessions[engine].run([tensor.name for tensor in spec.outputs], feeds)
        return {tensor.target: result for tensor, result in zip(spec.outputs, results, strict=True)}

    def _values(self, more: Values) -> Values:
        """All that an engine can read."""
        values = {f"state.{name}": value for name, value in self.states.items()} | self._text | more
        for state in self.manifest.states:
            if state.kind == "ring":
                whole = self.manifest.whole_shape(state)
                values[f"state.{state.name}"] = self._whole(state.name, whole, state.host_dtype)
        return values

    def _call(self, when: str, more: Values) -> Values:
        """The calls at a moment: prompt and chunk states are there at once, carries when all calls are done."""
        carried: Values = {}
        made: Values = {}
        for name in self.manifest.called(*when.split()):
            for target, value in self._run(name, self._values(more)).items():
                state = target.removeprefix("state.")
                if target == "frames":
                    made[target] = value
                elif self.manifest.state[state].kind == "carry":
                    carried[state] = value
                else:
                    self.states[state] = value
        self._keep(carried)
        return made

    def _keep(self, carried: Values) -> None:
        self.states |= carried

    def _whole(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        whole = np.zeros(shape, dtype)
        for slot, (_, parts) in self.slots.items():
            part = parts[name]
            whole[:, slot * part.shape[1] : (slot + 1) * part.shape[1]] = part
        return whole

    def _denoise(self, where: Values) -> tuple[np.ndarray, list[Values], Values]:
        """The clean sample, the states of each pass, and what the last pass wrote, by state."""
        sample, own, written = self._noise(0), [], {}
        for index, each in enumerate(self.manifest.passes):
            fresh = self._noise(index + 1) if each.noise else np.zeros_like(sample)
            sample, written = self._pass(index, sample, {**where, "noise": fresh})
            own.append({name: written[name] for name in self.own[index]})
        return sample, own, written

    def _pass(self, index: int, sample: np.ndarray, more: Values) -> tuple[np.ndarray, Values]:
        each = self.manifest.passes[index]
        scalars = {f"pass.{name}": np.array([value], np.float32) for name, value in each.scalars.items()}
        own = {f"state.{name}": value for name, value in self.own[index].items()}
        result = self._run(each.engine, self._values({**more, **scalars, **own, "sample": sample}))
        sample = result.pop("sample", sample)
        return sample, {target.removeprefix("state."): value for target, value in result.items()}

    def _noise(self, draw: int) -> np.ndarray:
        shape = self.manifest.sample.shape[1:]
        return np.stack([noise(seed, self.chunk, draw, shape) for seed in self.seeds])

    def _slot(self, chunk: int) -> int:
        window = self.manifest.window
        assert window is not None, "a slot is of a window"
        if chunk < window.chunks:
            return chunk
        return window.sink + (chunk - window.sink) % (window.chunks - window.sink)

    def _held(self) -> list[int]:
        return sorted(chunk for chunk, _ in self.slots.values())

    def _positions(self, chunk: int, visible: list[int]) -> Values:
        window = self.manifest.window
        if window is None:
            return {}
        size, absolute = window.chunk_frames, window.positions == "absolute"
        slots = np.full(window.chunks * size, -1)
        for rank, other in enumerate(visible):
            start = self._slot(other) * size
            slots[start : start + size] = (other if absolute else rank) * size + np.arange(size)
        own = (chunk if absolute else len(visible)) * size + np.arange(size)
        rho = max(0, self.chunk - window.chunks) / self.chunk if self.chunk else 0
        positions = {"slot_position": slots, "frame_position": own, "rho": np.array([max(rho, 1e-3)], np.float32)}
        return {f"window.{name}": value for name, value in positions.items()}

    def _evict(self) -> None:
        if self.manifest.window is not None and self.chunk >= self.manifest.window.chunks:
            _, parts = self.slots[self._slot(self.chunk)]
            self._call("evict", {f"evicted.{name}": value for name, value in parts.items()})

    def _store(self, chunk: int, written: Values, sample: np.ndarray) -> None:
        if self.manifest.window is not None:
            rings = {s.name: written[s.name] for s in self.manifest.states if s.kind == "ring"}
            self.slots[self._slot(chunk)] = (chunk, {**rings, ":sample": sample})

    def _finish(self, sample: np.ndarray) -> np.ndarray:
        which = "after_later" if self.chunk else "after_first"
        return self._call(f"after {which}", {"clean": sample})["frames"]

    def _switch(self, prompts: list[str]) -> None:
        assert self._tokenizer is not None, "a new prompt needs a text"
        ids, mask = self._tokenizer.encode(prompts)
        text = {"text.ids": ids, "text.mask": mask}
        if self._text and all(np.array_equal(self._text[name], text[name]) for name in text):
            return
        self._text = text
        self._call("prompt", {})
        if not self.manifest.passes[-1].commits or not any(s.kind == "ring" for s in self.manifest.states):
            return
        old = [(chunk, self.slots[self._slot(chunk)][1][":sample"]) for chunk in self._held()]
        whole, self.slots = self.slots, {}
        for count, (chunk, sample) in enumerate(old):
            # Slots that are not yet made again count as empty, whatever still lies there.
            made, self.slots = self.slots, {**whole, **self.slots}
            where = self._positions(chunk, [c for c, _ in old[:count]])
            self._call("before", where)
            sample, written = self._pass(len(self.manifest.passes) - 1, sample, {**where, "noise": 0 * sample})
            self.slots = made
            self._store(chunk, written, sample)
