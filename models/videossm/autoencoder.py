"""The causal video autoencoder: frames to latents one by one, latents to frames with temporal caches.

The decoder sees the past through causal temporal convolutions of 3 frames. Each keeps the last two
frames of its input as its cache, so decoding chunk by chunk equals decoding the whole video at once,
and the first chunk needs no graph of its own: its caches are zero, as causal padding is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.models.videossm.config import AutoencoderConfig

TAPS = 3  # frames that a temporal convolution sees; its cache holds TAPS - 1


class TemporalConv(nn.Module):
    """A causal convolution along time alone: [B, F, C, h, w] and cache [B, TAPS - 1, C, h, w] to the same two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(TAPS * width, width, 1)

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        frames = x.shape[1]
        padded = torch.cat([cache, x], 1)
        # A temporal convolution is a 1x1 convolution over the stacked channels of its taps.
        taps = torch.cat([padded[:, i : i + frames] for i in range(TAPS)], 2)
        return self.conv(taps.flatten(0, 1)).unflatten(0, x.shape[:2]), padded[:, frames:]


class Stage(nn.Module):
    """x + conv3x3(silu(temporal(silu(x)))): one residual stage of the decoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.temporal = TemporalConv(width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cache = self.temporal(F.silu(x), cache)
        hidden = self.spatial(F.silu(hidden).flatten(0, 1)).unflatten(0, x.shape[:2])
        return x + hidden, cache


class Encoder(nn.Module):
    """Frames [B, F, 3, H, W] in [-1, 1] to latents [B, F, C, h, w], each frame on its own."""

    def __init__(self, config: AutoencoderConfig, latent_channels: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, config.width, config.scale, stride=config.scale)
        self.spatial = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.out = nn.Conv2d(config.width, latent_channels, 1)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.patch(frames.flatten(0, 1))
        x = x + self.spatial(F.silu(x))
        return self.out(F.silu(x)).unflatten(0, frames.shape[:2])


class Decoder(nn.Module):
    """Normalised latents [B, F, C, h, w] and caches to frames [B, F x time_scale, 3, H, W] in [-1, 1] and new caches.

    `mean` and `std` [C] are the latents' statistics over the training set: the transformer works on
    (latent - mean) / std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: AutoencoderConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(latent_channels))
        self.register_buffer("std", torch.ones(latent_channels))
        self.inp = nn.Conv2d(latent_channels, config.width, 3, padding=1)
        self.stages = nn.ModuleList(Stage(config.width) for _ in range(config.depth))
        self.out = nn.Conv2d(config.width, 3 * config.time_scale * config.scale**2, 1)

    def forward(self, latents: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        x = latents * self.std[:, None, None] + self.mean[:, None, None]
        x = self.inp(x.flatten(0, 1)).unflatten(0, latents.shape[:2])
        new_caches = []
        for stage, cache in zip(self.stages, caches, strict=True):
            x, cache = stage(x, cache)
            new_caches.append(cache)
        pixels = F.pixel_shuffle(self.out(F.silu(x).flatten(0, 1)), self.config.scale)
        return pixels.unflatten(1, (-1, 3)).unflatten(0, latents.shape[:2]).flatten(1, 2), new_caches

    def empty_caches(self, batch: int, height: int, width: int) -> list[Tensor]:
        """Caches before the first frame, for latents of `height` x `width`: zeros [B, 2, width, h, w] a stage."""
        shape = (batch, TAPS - 1, self.config.width, height, width)
        return [torch.zeros(shape, device=self.mean.device) for _ in self.stages]


class Autoencoder(nn.Module):
    """Encoder and decoder together, as they are trained; a plan carries the decoder only."""

    def __init__(self, config: AutoencoderConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, latent_channels)
        self.decoder = Decoder(config, latent_channels)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W] in [-1, 1] to normalised latents [B, F, C, h, w], of every `time_scale`-th frame."""
        latents = self.encoder(frames[:, :: self.config.time_scale])
        return (latents - self.decoder.mean[:, None, None]) / self.decoder.std[:, None, None]


def to_uint8(frames: Tensor) -> Tensor:
    """Frames [B, F, 3, H, W] in [-1, 1] to pixels [B, F, H, W, 3] uint8, rounded to nearest, halves up."""
    pixels = ((frames + 1) * 127.5).clamp(0, 255).permute(0, 1, 3, 4, 2)
    # By Floor, as ONNX Runtime has no kernel of Round for CUDA. The cast last, as TensorRT reads no uint8.
    return (pixels + 0.5).floor().to(torch.uint8)
