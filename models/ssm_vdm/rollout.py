"""Videos from a model, in PyTorch: clip after clip, or a stream chunk by chunk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from videossm.models.family import NoiseSource
from videossm.models.ssm_vdm.diffusion import scalars
from videossm.models.ssm_vdm.model import SsmVdm
from videossm.models.ssm_vdm.step import Decode, Step


@torch.no_grad()
def samples(model: SsmVdm, noise: NoiseSource, cond: Tensor | None = None) -> Iterator[Tensor]:
    """The last samples [B, F, C, h, w]: of clips without end, or of the chunks of an endless stream.

    `noise`: its draw 0 is where the sampler begins, draw k + 1 is for step k of DDPM.
    """
    config = model.config
    step, ddpm = Step(model.unet, config), config.diffusion.sampler == "ddpm"
    levels = [[torch.tensor([value]) for value in values.values()] for values in scalars(config.diffusion)]
    states: list[list[Tensor] | None] = [None] * len(levels)  # of each step of the sampler
    if config.streams:
        batch, _, _, height, width = config.sample_shape
        batch = batch if cond is None else len(cond)
        states = [[torch.zeros(shape) for shape in model.unet.state_shapes(batch, height, width)] for _ in levels]
    for chunk in itertools.count():
        sample = noise(chunk, 0)
        for k, values in enumerate(levels):
            sample, after = step(sample, values, cond, noise(chunk, k + 1) if ddpm else None, states[k])
            if config.streams:
                states[k] = after
        yield sample


def frames(model: SsmVdm, sample: Tensor) -> Tensor:
    """The last sample as uint8 [B, F, H, W, 3]."""
    return Decode(model.config.patch)(sample)
