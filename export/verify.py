"""Rolls the PyTorch model and its plan side by side, fed the same noise, and measures how far they part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videossm.models.model import VideoModel
from videossm.models.rollout import ReferenceRollout
from videossm.runtime import Plan, Rollout
from videossm.runtime.noise import noise
from videossm.runtime.prompt import PromptTokenizer

TOLERANCE = 1e-4  # largest relative error of a chunk's latents, in fp32
PIXEL_TOLERANCE = 1  # largest difference of a pixel's value, of 255: one for rounding
BEYOND_WINDOW = 4  # chunks verified after the first eviction


@dataclass(frozen=True)
class ChunkError:
    """How far one chunk of the plan is from the reference."""

    index: int
    latent: float  # |plan - reference| / |reference| over the chunk's latents
    pixels: int  # largest difference of a pixel's value, of 255

    @property
    def small(self) -> bool:
        """False for NaN too."""
        return self.latent <= TOLERANCE and self.pixels <= PIXEL_TOLERANCE


def chunks_to_verify(plan: Plan) -> int:
    """Enough to fill the window, roll it, and read the memory several times."""
    stream = plan.manifest.stream
    return stream.window_frames // stream.chunk_frames + 1 + BEYOND_WINDOW


def verify(plan: Plan, model: VideoModel, chunks: int) -> Iterator[ChunkError]:
    """The error of each of `chunks` chunks, as they are made; each carries what the chunks before it left."""
    prompts, seeds = verification_prompts(plan), list(range(plan.manifest.stream.batch))
    rollout = Rollout(plan, prompts, seeds)
    for reference, chunk in islice(zip(reference_rollout(plan, model, prompts, seeds), rollout, strict=False), chunks):
        frames = reference.frames.numpy().reshape(chunk.frames.shape)
        yield ChunkError(
            chunk.index,
            relative_error(rollout.latent, reference.latent.numpy()),
            int(np.abs(chunk.frames.astype(np.int16) - frames).max()),
        )


def reference_rollout(plan: Plan, model: VideoModel, prompts: list[str], seeds: list[int]) -> ReferenceRollout:
    """The PyTorch rollout that `Rollout(plan, prompts, seeds)` must equal."""
    tokenizer = PromptTokenizer(plan.tokenizer_file, plan.manifest.text.length)
    ids, mask = (torch.from_numpy(array) for array in tokenizer.encode(prompts))
    shape = model.config.latent_shape[1:]

    def gaussian(chunk: int, step: int) -> Tensor:
        return torch.from_numpy(np.stack([noise(seed, chunk, step, shape) for seed in seeds]))

    return ReferenceRollout(model, ids, mask, gaussian)


def verification_prompts(plan: Plan) -> list[str]:
    """Another prompt for each stream of the batch, in words that the plan's tokenizer certainly knows."""
    words = PromptTokenizer(plan.tokenizer_file, plan.manifest.text.length).words()
    length = min(5, plan.manifest.text.length)
    return [" ".join((words * 2)[i : i + length]) for i in range(plan.manifest.stream.batch)]


def relative_error(got: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """|got - expected| / |expected|, Euclidean norms over all elements."""
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))
