"""Videos from a model, in PyTorch: a clip at once, or a stream chunk by chunk."""

from __future__ import annotations

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
    step, first = Step(model.unet, model.config), noise(0, 0)
    shapes = model.unet.state_shapes(len(first), *first.shape[-2:])
    states = [[torch.zeros(shape) for shape in shapes] for _ in passes(model.config.diffusion)]
    chunk = 0
    while True:
        yield _denoise(model, step, noise, chunk, cond, states)
        chunk += 1


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
