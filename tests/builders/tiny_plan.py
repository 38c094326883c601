"""A tiny plan with the whole contract, and its rollout written out in NumPy with plain lists.

The engines mean nothing, but every input of theirs changes the result: a wrong slot, order, position, state or prompt
shows.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from graph import Graph
from onnx import TensorProto
from small_plan import WORDS, write_plan

from videossm.runtime.noise import noise
from videossm.runtime.plan import Plan

CHANNELS, HEIGHT, WIDTH = 1, 4, 4  # of a latent frame
HEADS, DIM = 2, 4
FRAME_TOKENS = CHANNELS * HEIGHT * WIDTH // (HEADS * DIM)
PIXELS = 8  # of a latent cell


@dataclasses.dataclass(frozen=True)
class Tiny:
    """What can vary from one tiny plan to another."""

    batch: int = 1
    chunk_frames: int = 3
    window_frames: int = 9
    sink_frames: int = 3
    rope_frame: str = "window"
    sampler: str = "euler"
    sigmas: tuple[float, ...] = (1.0, 0.8, 0.4)
    memory: bool = True
    layers: int = 2
    text_length: int = 5
    fps: float = 8.0

    @property
    def latent(self) -> tuple[int, ...]:
        return (self.batch, self.chunk_frames, CHANNELS, HEIGHT, WIDTH)

    @property
    def tokens(self) -> int:
        return self.chunk_frames * FRAME_TOKENS

    @property
    def key(self) -> tuple[int, ...]:
        return (self.batch, self.tokens, HEADS, DIM)

    @property
    def gate(self) -> tuple[int, ...]:
        return (self.batch, self.tokens, HEADS)

    @property
    def past(self) -> tuple[int, ...]:
        return (self.batch, self.window_frames * FRAME_TOKENS, HEADS, DIM)

    @property
    def state(self) -> tuple[int, ...]:
        return (self.batch, HEADS, DIM, DIM)

    @property
    def prompt(self) -> tuple[int, ...]:
        return (self.batch, self.text_length, HEADS, DIM)

    @property
    def frames(self) -> tuple[int, ...]:
        return (self.batch, self.chunk_frames, HEIGHT * PIXELS, WIDTH * PIXELS, 3)


def mix(layer: int) -> np.ndarray:
    """[HEADS x DIM, latent frame]: constant weights of a layer."""
    rng = np.random.default_rng(layer)
    return rng.normal(0, 0.3, (HEADS * DIM, CHANNELS * HEIGHT * WIDTH)).astype(np.float32)


def text_encoder(tiny: Tiny) -> Graph:
    g = Graph()
    ids = g.input("input_ids", (tiny.batch, tiny.text_length), "text.ids", "int64")
    mask = g.input("attention_mask", (tiny.batch, tiny.text_length), "text.mask", "int64")
    value = g.op("Cast", g.op("Mul", ids, mask), to=TensorProto.FLOAT)
    value = g.reshape(value, (tiny.batch, tiny.text_length, 1, 1))
    offset = g.constant(np.arange(HEADS * DIM).reshape(HEADS, DIM))
    for i in range(tiny.layers):
        angle = g.op("Add", g.scaled(value, 0.3 * (i + 1)), offset)
        g.output(g.op("Sin", angle), f"prompt.{i}.key", tiny.prompt, f"state.prompt.{i}.key")
        g.output(g.op("Cos", angle), f"prompt.{i}.value", tiny.prompt, f"state.prompt.{i}.value")
    return g


def step(tiny: Tiny) -> Graph:
    g = Graph()
    latent = g.input("latent", tiny.latent, "sample")
    fresh = g.input("noise", tiny.latent, "noise") if tiny.sampler == "renoise" else ""
    sigma, sigma_next = g.input("sigma", (1,), "pass.sigma"), g.input("sigma_next", (1,), "pass.sigma_next")
    rho = g.input("rho", (1,), "window.rho") if tiny.memory else ""
    slots = g.input("slot_position", (tiny.window_frames,), "window.slot_position", "int64")
    frames = g.input("frame_position", (tiny.chunk_frames,), "window.frame_position", "int64")
    slot_angle = g.op("Cast", slots, to=TensorProto.FLOAT)
    filled = g.op("Cast", g.op("GreaterOrEqual", slots, g.constant(0, "int64")), to=TensorProto.FLOAT)
    frame_weight = g.op("Cos", g.scaled(g.op("Cast", frames, to=TensorProto.FLOAT), 0.3))
    frame_weight = g.reshape(frame_weight, (1, tiny.chunk_frames, 1, 1, 1))

    def looked_up(past: str, factor: float) -> str:
        weight = g.op("Mul", g.op("Cos", g.scaled(slot_angle, factor)), filled)
        weight = g.op("Expand", g.reshape(weight, (-1, 1)), g.constant([1, FRAME_TOKENS], "int64"))
        return g.sum(g.op("Mul", past, g.reshape(weight, (1, -1, 1, 1))), 1)

    x = latent
    for i in range(tiny.layers):
        key, value = (g.input(f"prompt.{i}.{n}", tiny.prompt, f"state.prompt.{i}.{n}") for n in ("key", "value"))
        context = g.sum(g.op("Sub", key, g.scaled(value, 0.5)), 1)
        for name, factor in (("key", 0.3), ("value", 0.7)):
            context = g.op(
                "Add", context, looked_up(g.input(f"past.{i}.{name}", tiny.past, f"state.{i}.{name}"), factor)
            )
        if tiny.memory:
            read = g.sum(g.input(f"past.{i}.memory", tiny.state, f"state.{i}.memory"), 3)
            context = g.op("Add", context, g.op("Mul", read, rho))
        context = g.op("MatMul", g.reshape(context, (tiny.batch, HEADS * DIM)), g.constant(mix(i)))
        context = g.reshape(context, (tiny.batch, 1, CHANNELS, HEIGHT, WIDTH))
        x = g.op("Add", x, g.op("Mul", context, frame_weight))
        x = g.op("Tanh", g.op("Add", x, g.scaled(sigma, 0.1)))
        tokens = g.reshape(x, tiny.key)
        g.output(tokens, f"present.{i}.key", tiny.key, f"state.{i}.key")
        g.output(g.op("Mul", tokens, tokens), f"present.{i}.value", tiny.key, f"state.{i}.value")
        if tiny.memory:
            mean = g.scaled(g.sum(tokens, 3), 1 / DIM)
            g.output(g.op("Neg", g.op("Abs", mean)), f"present.{i}.decay", tiny.gate, f"state.{i}.decay")
            g.output(g.op("Sigmoid", mean), f"present.{i}.beta", tiny.gate, f"state.{i}.beta")
    flow = g.op("Sub", latent, x)
    if fresh:
        clean = g.op("Sub", latent, g.op("Mul", sigma, flow))
        kept = g.op("Mul", g.op("Sub", g.constant(1.0), sigma_next), clean)
        following = g.op("Add", kept, g.op("Mul", sigma_next, fresh))
    else:
        following = g.op("Add", latent, g.op("Mul", g.op("Sub", sigma_next, sigma), flow))
    g.output(following, "latent_next", tiny.latent, "sample")
    return g


def memory(tiny: Tiny) -> Graph:
    g = Graph()
    for i in range(tiny.layers):
        key, value = (g.input(f"evicted.{i}.{name}", tiny.key, f"evicted.{i}.{name}") for name in ("key", "value"))
        decay, beta = (g.input(f"evicted.{i}.{name}", tiny.gate, f"evicted.{i}.{name}") for name in ("decay", "beta"))
        past = g.input(f"memory.{i}", tiny.state, f"state.{i}.memory")
        forget = g.reshape(g.op("Exp", g.scaled(g.sum(decay, 1), 1 / tiny.tokens)), (tiny.batch, HEADS, 1, 1))
        weighted = g.op("Mul", key, g.reshape(beta, (*tiny.gate, 1)))
        left = g.op("Transpose", weighted, perm=[0, 2, 3, 1])
        right = g.op("Transpose", value, perm=[0, 2, 1, 3])
        following = g.op("Add", g.op("Mul", past, forget), g.op("MatMul", left, right))
        g.output(following, f"memory_next.{i}", tiny.state, f"state.{i}.memory")
    return g


def decoder(tiny: Tiny) -> Graph:
    g = Graph()
    one = (tiny.batch, 1, CHANNELS, HEIGHT, WIDTH)
    latents, cache = g.input("latents", tiny.latent, "clean"), g.input("cache.0", one, "state.cache")
    axis = g.constant([1], "int64")
    last, end = g.constant([tiny.chunk_frames - 1], "int64"), g.constant([tiny.chunk_frames], "int64")
    before = g.op("Concat", cache, g.op("Slice", latents, g.constant([0], "int64"), last, axis), axis=1)
    value = g.op("Add", g.scaled(g.op("Add", latents, g.scaled(before, 0.5)), 40.0), g.constant(128.0))
    value = g.op("Clip", value, g.constant(0.0), g.constant(255.0))
    value = g.reshape(value, (tiny.batch, tiny.chunk_frames, HEIGHT, 1, WIDTH, 1, 1))
    wide = (tiny.batch, tiny.chunk_frames, HEIGHT, PIXELS, WIDTH, PIXELS, 3)
    value = g.reshape(g.op("Expand", value, g.constant(wide, "int64")), tiny.frames)
    g.output(g.op("Cast", value, to=TensorProto.UINT8), "frames", tiny.frames, "frames", "uint8")
    g.output(g.op("Slice", latents, last, end, axis), "cache_next.0", one, "state.cache")
    return g


def write_tiny_plan(folder: Path, tiny: Tiny, name: str) -> Plan:
    folder.mkdir(parents=True)
    graphs = {"text_encoder": text_encoder(tiny), "step": step(tiny)}
    calls = ["prompt text_encoder"]
    layers = range(tiny.layers)
    states = {f"prompt.{i}.{part}": "prompt half" for i in layers for part in ("key", "value")}
    states |= {f"{i}.{part}": "ring half" for i in layers for part in ("key", "value")}
    if tiny.memory:
        states |= {f"{i}.{part}": "ring" for i in layers for part in ("decay", "beta")}
        states |= {f"{i}.memory": "carry" for i in layers}
        graphs["memory"] = memory(tiny)
        calls.append("evict memory")
    graphs["decoder"] = decoder(tiny)
    levels = [*tiny.sigmas, 0.0]
    renoise = tiny.sampler == "renoise"
    passes = [
        f"step sigma={sigma} sigma_next={following}" + " noise" * (renoise and following > 0)
        for sigma, following in itertools.pairwise(levels)
    ]
    chunks, sink = (frames // tiny.chunk_frames for frames in (tiny.window_frames, tiny.sink_frames))
    return write_plan(
        folder,
        graphs,
        [*passes, "step sigma=0 sigma_next=0 commits"],
        [*calls, "after decoder"],
        {**states, "cache": "carry half"},
        window=(chunks, sink, tiny.chunk_frames, tiny.rope_frame),
        text=tiny.text_length,
        fps=tiny.fps,
        name=name,
    )


class Twin:
    """The same rollout in NumPy: chunks in lists, one dictionary a chunk, nothing overwritten."""

    def __init__(self, tiny: Tiny, prompts: list[str], seeds: list[int]) -> None:
        self.tiny, self.seeds, self.prompts = tiny, seeds, prompts
        self.chunk = 0
        self.window: list[dict[str, Any]] = []  # video order
        self.memory = [np.zeros(tiny.state, np.float32) for _ in range(tiny.layers)]
        self.cache = np.zeros((tiny.batch, 1, CHANNELS, HEIGHT, WIDTH), np.float32)

    def next(self) -> np.ndarray:
        """Frames [B, T, H, W, 3] uint8."""
        tiny, levels = self.tiny, [*self.tiny.sigmas, 0.0]
        x = self._noise(0)
        for k, (sigma, following) in enumerate(itertools.pairwise(levels)):
            fresh = self._noise(k + 1) if tiny.sampler == "renoise" else None
            x = self._step(x, sigma, following, fresh, self.window, self.chunk)[0]
        entry = self._step(x, 0.0, 0.0, np.zeros_like(x), self.window, self.chunk)[1]
        sink = tiny.sink_frames // tiny.chunk_frames
        if len(self.window) == tiny.window_frames // tiny.chunk_frames:
            self._remember(self.window.pop(sink))
        self.window.append(entry)
        self.chunk += 1
        return self._decode(x)

    def set_prompts(self, prompts: list[str]) -> None:
        self.prompts = prompts
        remade: list[dict[str, Any]] = []
        for old in self.window:
            latent = old["latent"]
            remade.append(self._step(latent, 0.0, 0.0, np.zeros_like(latent), remade, old["chunk"])[1])
        self.window = remade

    def _noise(self, step: int) -> np.ndarray:
        return np.stack([noise(seed, self.chunk, step, self.tiny.latent[1:]) for seed in self.seeds])

    def _rho(self) -> float:
        seen = self.chunk * self.tiny.chunk_frames
        return float(np.clip((seen - self.tiny.window_frames) / seen, 1e-3, 1)) if seen else 1e-3

    def _prompt(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((self.tiny.batch, self.tiny.text_length, 1, 1), np.float32)
        for row, prompt in enumerate(self.prompts):
            tokens = [2 + WORDS.index(word) for word in prompt.lower().split()]
            ids[row, : len(tokens), 0, 0] = tokens
        angle = ids * np.float32(0.3 * (layer + 1)) + np.arange(HEADS * DIM, dtype=np.float32).reshape(HEADS, DIM)
        return np.sin(angle), np.cos(angle)

    def _step(
        self,
        latent: np.ndarray,
        sigma: float,
        following: float,
        fresh: np.ndarray | None,
        visible: list[dict[str, Any]],
        chunk: int,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        tiny = self.tiny
        count, absolute = tiny.chunk_frames, tiny.rope_frame == "absolute"
        places = np.arange(count) + count * (chunk if absolute else len(visible))
        frame_weight = np.cos(0.3 * places).reshape(1, count, 1, 1, 1)
        x, entry = latent, {"chunk": chunk, "latent": latent}
        for i in range(tiny.layers):
            key, value = self._prompt(i)
            context = (key - 0.5 * value).sum(1)
            for rank, other in enumerate(visible):
                start = count * (other["chunk"] if absolute else rank)
                angle = np.repeat(np.arange(start, start + count), FRAME_TOKENS).reshape(1, -1, 1, 1)
                context = context + (other[f"key.{i}"] * np.cos(0.3 * angle)).sum(1)
                context = context + (other[f"value.{i}"] * np.cos(0.7 * angle)).sum(1)
            if tiny.memory:
                context = context + self.memory[i].sum(3) * self._rho()
            mixed = (context.reshape(tiny.batch, -1) @ mix(i)).reshape(tiny.batch, 1, CHANNELS, HEIGHT, WIDTH)
            x = np.tanh(x + mixed * frame_weight + 0.1 * sigma)
            tokens = x.reshape(tiny.key)
            entry |= {f"key.{i}": tokens, f"value.{i}": tokens**2, f"mean.{i}": tokens.mean(3)}
        flow = latent - x
        if fresh is None:
            return (latent + (following - sigma) * flow), entry
        return (1 - following) * (latent - sigma * flow) + following * fresh, entry

    def _remember(self, entry: dict[str, Any]) -> None:
        if not self.tiny.memory:
            return
        for i, past in enumerate(self.memory):
            mean = entry[f"mean.{i}"]
            forget = np.exp(-np.abs(mean).mean(1))[:, :, None, None]
            beta = 1 / (1 + np.exp(-mean))
            update = np.einsum("bnhk,bnh,bnhv->bhkv", entry[f"key.{i}"], beta, entry[f"value.{i}"])
            self.memory[i] = past * forget + update

    def _decode(self, latents: np.ndarray) -> np.ndarray:
        before = np.concatenate([self.cache, latents[:, :-1]], axis=1)
        self.cache = latents[:, -1:]
        value = np.clip((latents + 0.5 * before) * 40 + 128, 0, 255)[:, :, 0]
        value = value.repeat(PIXELS, axis=2).repeat(PIXELS, axis=3)
        return np.repeat(value[..., None], 3, axis=4).astype(np.uint8)
