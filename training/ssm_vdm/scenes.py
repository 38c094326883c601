"""Clips of the shapes world at a model's size, rendered as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from videossm.models.shapes.tokenizer import build_tokenizer
from videossm.models.shapes.vocabulary import Prompt
from videossm.models.shapes.world import World, random_prompt, render
from videossm.models.ssm_vdm.config import SsmVdmConfig


def small_world(prompt: Prompt, rng: np.random.Generator, size: int) -> World:
    """A random scene in a frame of `size` x `size` pixels: that of the world's own size, scaled down."""
    world = World.sample(prompt, rng)
    scale = size / world.size
    lengths = {name: getattr(world, name) * scale for name in ("x", "y", "vx", "vy", "diameter")}
    return replace(world, size=size, **lengths)


def tokenize(prompts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [B, length] each."""
    tokenizer = build_tokenizer()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=length)
    encoded = tokenizer.encode_batch(prompts)
    return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])


def samples(frames: np.ndarray, patch: int) -> Tensor:
    """uint8 [B, F, H, W, 3] as the model's samples [B, F, C, h, w] in [-1, 1]."""
    pixels = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    return F.pixel_unshuffle(pixels, patch)


def batches(config: SsmVdmConfig, size: int, frames: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless random clips [B, F, C, h, w], with ids and masks of their prompts."""
    rng = np.random.default_rng(seed)
    while True:
        prompts = [random_prompt(rng) for _ in range(size)]
        videos = np.stack([render(small_world(prompt, rng, config.height), frames) for prompt in prompts])
        yield samples(videos, config.patch), *tokenize([str(prompt) for prompt in prompts], config.text_len)
