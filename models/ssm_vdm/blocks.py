"""The UNet's parts. All work on [B F, C, h, w]: each frame is a picture, and `frames` says how many are a clip."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION_WIDTH = 32  # channels of a head of the spatial attentions
TIME_PERIOD = 10_000.0  # of the slowest sinusoid, in timesteps over 2 pi


class ClipGroupNorm(nn.GroupNorm):
    """Mean and deviation over all frames of a clip, or over each alone with `by_frame`."""

    def __init__(self, groups: int, channels: int, by_frame: bool) -> None:
        super().__init__(groups, channels)
        self.by_frame = by_frame

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        if self.by_frame or frames == 1:
            return super().forward(x)
        clips = x.unflatten(0, (-1, frames)).transpose(1, 2)  # [B, C, F, h, w]
        height = x.shape[2]
        # As one tall picture: of a channels-last tensor this is a view, and the kernel for pictures is the fast one.
        normed = super().forward(clips.flatten(2, 3))
        return normed.unflatten(2, (frames, height)).transpose(1, 2).flatten(0, 1)


class Block(nn.Module):
    """Convolution, norm, scale and shift, SiLU."""

    def __init__(self, channels: int, out: int, groups: int, by_frame: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out, 3, padding=1)
        self.norm = ClipGroupNorm(groups, out, by_frame)

    def forward(self, x: Tensor, frames: int, scale_shift: Tensor | None = None) -> Tensor:
        """`scale_shift` [B or 1, 2 C]: multiplies by the first half plus 1, adds the second."""
        x = self.norm(self.proj(x), frames)
        if scale_shift is not None:
            if len(scale_shift) > 1:
                scale_shift = scale_shift.repeat_interleave(frames, 0)
            scale, shift = scale_shift[..., None, None].chunk(2, 1)
            x = x * (scale + 1) + shift
        return F.silu(x)


class ResnetBlock(nn.Module):
    """Two blocks beside a shortcut; the embeddings of time and prompt scale and shift the first one."""

    def __init__(
        self, channels: int, out: int, groups: int, by_frame: bool, time_dim: int = 0, cond_dim: int = 0
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * out)) if time_dim else None
        # By itself, as what the time alone adds is known at export, which tabulates it.
        self.cond = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim, 2 * out, bias=False)) if cond_dim else None
        self.block1, self.block2 = Block(channels, out, groups, by_frame), Block(out, out, groups, by_frame)
        self.res_conv = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, frames: int, time: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """x [B F, C, h, w], time [B or 1, time_dim], cond [B, cond_dim], to [B F, out, h, w]."""
        scale_shift = None if self.mlp is None else self.mlp(time)
        if self.cond is not None:
            scale_shift = scale_shift + self.cond(cond)
        return self.block2(self.block1(x, frames, scale_shift), frames) + self.res_conv(x)


class ChannelNorm(nn.Module):
    """Layer norm over channels with a gain and no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C], channels last."""
        return F.layer_norm(x, x.shape[-1:], self.gamma)


class LinearAttention(nn.Module):
    """Attention within a frame at a cost linear in its places: softmax over d of the query and over n of the key."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(channels, 3 * heads * ATTENTION_WIDTH, bias=False)
        self.to_out = nn.Linear(heads * ATTENTION_WIDTH, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, places, C] to the same shape."""
        query, key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.to_qkv(x).chunk(3, -1))
        context = key.softmax(-2).transpose(-1, -2) @ value
        read = (query.softmax(-1) * ATTENTION_WIDTH**-0.5) @ context
        return self.to_out(read.transpose(1, 2).flatten(2))


class FullAttention(nn.Module):
    """Softmax attention within a frame."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(channels, 3 * heads * ATTENTION_WIDTH, bias=False)
        self.to_out = nn.Linear(heads * ATTENTION_WIDTH, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, places, C] to the same shape."""
        query, key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.to_qkv(x).chunk(3, -1))
        weights = ((query * ATTENTION_WIDTH**-0.5) @ key.transpose(-1, -2)).softmax(-1)
        return self.to_out((weights @ value).transpose(1, 2).flatten(2))


class TimeEmbedding(nn.Sequential):
    """Sinusoids of the timestep through linear layers with GELU between: [B] to [B, out]."""

    def __init__(self, dim: int, out: int, linears: int) -> None:
        layers: list[nn.Module] = [Sinusoids(dim)]
        for index in range(linears):
            layers += [nn.GELU()] * (index > 0) + [nn.Linear(out if index else dim, out)]
        super().__init__(*layers)


class Sinusoids(nn.Module):
    """Sines, then cosines, of a timestep at dim / 2 frequencies: [B] to [B, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        rates = (torch.arange(half) * -(math.log(TIME_PERIOD) / (half - 1))).exp()
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        angle = time[:, None] * self.get_buffer("rates")
        return torch.cat([angle.sin(), angle.cos()], -1)
