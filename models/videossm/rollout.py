"""The reference rollout: what a plan's runtime must reproduce, in plain PyTorch.

It keeps the window as a list of chunks in video order instead of a ring, so a mistake in the runtime's
slots, positions or order shows as a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from videossm.models.videossm.memory import RHO_MIN
from videossm.models.videossm.model import VideoModel
from videossm.models.videossm.step import Decode, MemoryUpdate, PromptEncoder, Step, TurnKeys

NoiseSource = Callable[[int, int], Tensor]  # (chunk, step) -> [B, F, C, h, w]


@dataclass
class WindowChunk:
    """A chunk inside the window."""

    index: int  # in the video
    latent: Tensor  # clean, [B, F, C, h, w]
    present: list[Tensor]  # the commit pass's keys, values and gates, as `Step` returns them


@dataclass
class Surroundings:
    """All that the steps of one chunk see beside its latent; the same for each of them."""

    past: list[Tensor]  # turned key and value of each block in turn [B, P, D]; P grows until the window is full
    slot_position: Tensor  # int64 [P frames]
    frame_position: Tensor  # int64 [F]
    rho: Tensor | None  # [1]; None without a memory


@dataclass
class ReferenceChunk:
    """What one chunk of the reference rollout leaves behind."""

    latent: Tensor  # clean, [B, F, C, h, w]
    frames: Tensor  # uint8 [B, T, H, W, 3]


class ReferenceRollout:
    """An endless video from a model: `for chunk in ReferenceRollout(model, ids, mask, noise)`."""

    @torch.no_grad()
    def __init__(self, model: VideoModel, input_ids: Tensor, attention_mask: Tensor, noise: NoiseSource) -> None:
        """`input_ids`, `attention_mask`: int64 [B, L]. `noise`: the Gaussian noise of a chunk's step."""
        self.config, self.noise = model.config, noise
        self.encode_prompt = PromptEncoder(model.text_encoder, model.transformer)
        self.turn_keys = TurnKeys(model.transformer)
        self.step = Step(model.transformer, model.config)
        self.update_memory = MemoryUpdate()
        self.decode_first = Decode(model.autoencoder.decoder, first=True)
        self.decode = Decode(model.autoencoder.decoder, first=False)
        self.batch = len(input_ids)
        transformer, config = model.config.transformer, model.config
        self.window: list[WindowChunk] = []
        heads, dim = transformer.heads, transformer.head_dim
        layers = transformer.layers if transformer.memory else 0
        self.memory = [torch.zeros(self.batch, heads, dim, dim) for _ in range(layers)]
        self.caches = model.autoencoder.decoder.empty_caches(self.batch, config.latent_height, config.latent_width)
        self.chunks_made = 0
        self.chunks_evicted = 0
        self.prompt = self.encode_prompt(input_ids, attention_mask)

    @torch.no_grad()
    def __iter__(self) -> Iterator[ReferenceChunk]:
        while True:
            surroundings = self._surroundings(self.chunks_made)
            latent = self._denoise(surroundings)
            present = self._commit(latent, surroundings)
            self._enter_window(WindowChunk(self.chunks_made, latent, present))
            decode = self.decode if self.chunks_made else self.decode_first
            frames, self.caches = decode(latent, self.caches)
            self.chunks_made += 1
            yield ReferenceChunk(latent, frames)

    @torch.no_grad()
    def set_prompt(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        """From the next chunk on: recomputes the window under the new prompt and keeps the memory."""
        self.prompt = self.encode_prompt(input_ids, attention_mask)
        old, self.window = self.window, []
        for chunk in old:
            present = self._commit(chunk.latent, self._surroundings(chunk.index))
            self.window.append(WindowChunk(chunk.index, chunk.latent, present))

    def _denoise(self, surroundings: Surroundings) -> Tensor:
        sampler, index = self.config.sampler, self.chunks_made
        latent = self.noise(index, 0)
        for k, (sigma, sigma_next) in enumerate(zip(sampler.sigmas, (*sampler.sigmas[1:], 0.0), strict=True)):
            fresh = self.noise(index, k + 1) if sampler.kind == "renoise" else None
            latent, _ = self._step(latent, sigma, sigma_next, surroundings, fresh)
        return latent

    def _commit(self, latent: Tensor, surroundings: Surroundings) -> list[Tensor]:
        fresh = torch.zeros_like(latent) if self.config.sampler.kind == "renoise" else None
        return self._step(latent, 0.0, 0.0, surroundings, fresh)[1]

    def _enter_window(self, chunk: WindowChunk) -> None:
        window = self.config.window
        if len(self.window) * window.chunk_frames == window.window_frames:
            evicted = self.window.pop(window.sink_frames // window.chunk_frames)
            if self.memory:
                self.memory = self.update_memory(evicted.present, self.memory)
            self.chunks_evicted += 1
        self.window.append(chunk)

    def _step(
        self, latent: Tensor, sigma: float, sigma_next: float, around: Surroundings, noise: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        latent, present, _ = self.step(
            latent,
            torch.tensor([sigma]),
            torch.tensor([sigma_next]),
            around.slot_position,
            around.frame_position,
            self.prompt,
            around.past,
            self.memory,
            around.rho,
            noise,
        )
        return latent, present

    def _surroundings(self, index: int) -> Surroundings:
        """Of chunk `index`, behind the chunks that the window holds now."""
        rho = max(RHO_MIN, self.chunks_evicted / max(1, self.chunks_made))
        slot_position, frame_position = self._positions(index)
        past = self._past()
        past[::2] = self.turn_keys(slot_position, past[::2])
        return Surroundings(past, slot_position, frame_position, torch.tensor([rho]) if self.memory else None)

    def _past(self) -> list[Tensor]:
        """Key, not turned, and value of each block in turn."""
        transformer = self.config.transformer
        stride = 4 if transformer.memory else 2  # tensors of a block in `present`
        empty = torch.zeros(self.batch, 0, transformer.dim)
        return [
            torch.cat([empty, *(chunk.present[stride * block + kind] for chunk in self.window)], 1)
            for block in range(transformer.layers)
            for kind in range(2)
        ]

    def _positions(self, index: int) -> tuple[Tensor, Tensor]:
        """Of the window's frames and of the frames of chunk `index`, int64."""
        size = self.config.window.chunk_frames
        absolute = self.config.window.rope_frame == "absolute"
        chunks = [chunk.index for chunk in self.window] + [index] if absolute else list(range(len(self.window) + 1))
        frames = torch.tensor(chunks)[:, None] * size + torch.arange(size)
        return frames[:-1].flatten(), frames[-1]
