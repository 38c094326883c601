"""Videos from a model, in PyTorch: a clip at once, or a stream chunk by chunk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from videossm.models.ssm_vdm.diffusion import passes, scalars
from videossm.models.ssm_vdm.model import SsmVdm
from videossm.models.ssm_vdm.step import Decode, Step

NoiseSource = Callable[[int, int], Tensor]  # (chunk, step) -> [B, F, C, h, w]; step 0 is where the sampler begins


@torch.no_grad()
def clip(model: SsmVdm, noise: NoiseSource, cond: Tensor | None = None) -> Tensor:
    """The last sample of one clip, [B, F, C, h, w]."""
    return _denoise(model, Step(model.unet, model.config), noise, 0, cond, None)


@torch.no_grad()
def stream(model: SsmVdm, noise: NoiseSource, cond: Tensor | None = None) -> Iterator[Tensor]:
    """The last samples of an endless video's chunks, [B, F, C, h, w] each."""
    step, (_, _, height, width) = Step(model.unet, model.config), model.config.sample_shape
    shapes = model.unet.state_shapes(1 if cond is None else len(cond), height, width)
    states = [[torch.zeros(shape) for shape in shapes] for _ in passes(model.config.diffusion)]
    for chunk in itertools.count():
        yield _denoise(model, step, noise, chunk, cond, states)


def frames(model: SsmVdm, sample: Tensor) -> Tensor:
    """The last sample as uint8 [B, F, H, W, 3]."""
    return Decode(model.config.patch)(sample)


def _denoise(
    model: SsmVdm,
    step: Step,
    noise: NoiseSource,
    chunk: int,
    cond: Tensor | None,
    states: list[list[Tensor]] | None,
) -> Tensor:
    """Walks down the noise levels. `states`: those of each step of the sampler, replaced by the ones after."""
    diffusion = model.config.diffusion
    sample = noise(chunk, 0)
    for k, values in enumerate(passes(diffusion)):
        fresh = noise(chunk, k + 1) if diffusion.sampler == "ddpm" else None
        sample, after = step(sample, scalars(values), cond, fresh, states[k] if states else None)
        if states:
            states[k] = after
    return sample
