"""What a deployment runs of a model: one step of the sampler, and the way from the last sample to frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videossm.models.ssm_vdm.config import SsmVdmConfig
from videossm.models.ssm_vdm.diffusion import scalars
from videossm.models.ssm_vdm.unet import UNet


class Step(nn.Module):
    """One step of the sampler on a whole clip, or on a chunk of a stream.

    A stream has one set of states for each step of the sampler: the states of step k hold what step k has seen of the
    frames before. A chunk then costs the same however long the stream is, and the result is that of the whole clip.
    """

    def __init__(self, unet: UNet, config: SsmVdmConfig) -> None:
        super().__init__()
        self.unet, self.predicts_noise = unet, config.diffusion.prediction == "noise"
        self.scalars = tuple(scalars(config.diffusion)[0])
        unet.fix(config.frames, config.streams)

    def forward(
        self,
        sample: Tensor,
        values: Sequence[Tensor],
        cond: Tensor | None = None,
        noise: Tensor | None = None,
        states: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """sample [B, F, C, h, w] to the sample of the next, lower noise level, and the states after these frames.

        `values`: of `scalars`, as `diffusion.scalars` has them, fp32 [1] each. `cond` [B, cond_dim] for a model with
        prompts. `noise`, Gaussian, of the sample's shape, for DDPM. `states`, as `UNet.state_shapes` says,
        for a stream; zero before its first frame.
        """
        value = dict(zip(self.scalars, values, strict=True))
        predicted, states = self.unet(sample, value["timestep"], cond, states)
        x0 = (sample - value["sigma"] * predicted) / value["alpha"] if self.predicts_noise else predicted
        following = value["keep"] * sample + value["move"] * x0.clamp(-1, 1)
        if noise is not None:
            following = following + value["spread"] * noise
        return following, states


class Decode(nn.Module):
    """The last sample to frames."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, sample: Tensor) -> Tensor:
        """[B, F, 3 patch patch, h, w] in [-1, 1] to uint8 [B, F, h patch, w patch, 3]."""
        pixels = (
            nn.functional.pixel_shuffle(sample.flatten(0, 1), self.patch) if self.patch > 1 else sample.flatten(0, 1)
        )
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return levels.unflatten(0, sample.shape[:2]).permute(0, 1, 3, 4, 2)
