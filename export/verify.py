"""Rolls the PyTorch model and its plan side by side, fed the same noise, and measures how far they part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videossm.export.torch_backend import TorchBackend
from videossm.models.family import Deployment
from videossm.models.scans.capture import captured_scans
from videossm.runtime import Plan, Rollout
from videossm.runtime.noise import noise
from videossm.runtime.prompt import PromptTokenizer

TOLERANCE = 1e-4  # largest relative error of a chunk's sample, in fp32
PIXEL_TOLERANCE = 1  # largest difference of a pixel's value, of 255: one for rounding
BEYOND_WINDOW = 5  # chunks verified after those that fill the window; of a plan without one, all that are
WORDS = 5  # of a prompt

Array = NDArray[Any]


@dataclass(frozen=True)
class ChunkError:
    """How far one chunk of the plan is from the reference."""

    index: int
    sample: float  # |plan - reference| / |reference| over the chunk's clean sample
    pixels: int  # largest difference of a pixel's value, of 255

    @property
    def small(self) -> bool:
        """False for NaN too."""
        return self.sample <= TOLERANCE and self.pixels <= PIXEL_TOLERANCE


def chunks_to_verify(plan: Plan) -> int:
    """Enough to fill the window, roll it, and read several times what was evicted; of a clip all."""
    window, clip = plan.manifest.window, plan.manifest.stream.chunks
    chunks = BEYOND_WINDOW + (window.chunks if window else 0)
    return chunks if clip is None else min(chunks, clip)


def verify(plan: Plan, deployment: Deployment, chunks: int) -> Iterator[ChunkError]:
    """The error of each of `chunks` chunks, as they are made; each carries what the chunks before it left."""
    prompts, seeds = verification_prompts(plan), list(range(plan.manifest.stream.batch))
    rollout = Rollout(plan, prompts or None, seeds)
    reference = reference_chunks(plan, deployment, prompts, seeds)
    with captured_scans():
        for (sample, frames), chunk in islice(zip(reference, rollout, strict=False), chunks):
            yield ChunkError(
                chunk.index,
                relative_error(rollout.sample, sample),
                int(np.abs(chunk.frames.astype(np.int16) - frames).max()),
            )


def reference_chunks(
    plan: Plan, deployment: Deployment, prompts: list[str], seeds: list[int]
) -> Iterator[tuple[Array, Array]]:
    """Clean sample and frames of each chunk that `Rollout(plan, prompts, seeds)` must equal.

    By the family's own rollout where it has one, else by the plan's program over the modules.
    """
    if deployment.reference is None:
        rollout = Rollout(plan, prompts or None, seeds, backend=TorchBackend(deployment))
        for chunk in rollout:
            yield rollout.sample, chunk.frames
        return
    ids = mask = None
    if plan.manifest.text is not None:
        encoded = PromptTokenizer(plan.tokenizer_file, plan.manifest.text).encode(prompts)
        ids, mask = (torch.from_numpy(array) for array in encoded)
    shape = plan.manifest.sample.shape[1:]

    def gaussian(chunk: int, draw: int) -> Tensor:
        return torch.from_numpy(np.stack([noise(seed, chunk, draw, shape) for seed in seeds]))

    for sample, frames in deployment.reference(ids, mask, gaussian):
        yield sample.numpy(), frames.numpy()


def verification_prompts(plan: Plan) -> list[str]:
    """Another prompt for each stream of the batch, in words that the plan's tokenizer certainly knows."""
    text = plan.manifest.text
    if text is None:
        return []
    words = PromptTokenizer(plan.tokenizer_file, text).words()
    length = min(WORDS, text.length)
    return [" ".join((words * 2)[i : i + length]) for i in range(plan.manifest.stream.batch)]


def relative_error(got: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """|got - expected| / |expected|, Euclidean norms over all elements."""
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))
