"""The UNet of *SSM Meets Video Diffusion Models* (arXiv 2403.07711): spatial layers frame by frame, scans over frames.

Modules are named so that their parameters' names are the keys of a checkpoint of the public code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from videossm.models.ssm_vdm.blocks import (
    ChannelNorm,
    FullAttention,
    LinearAttention,
    ResnetBlock,
    TimeEmbedding,
)
from videossm.models.ssm_vdm.config import LATENT_DOWN, UNetConfig
from videossm.models.ssm_vdm.s4d import S4D
from videossm.models.ssm_vdm.temporal import TemporalLayer, temporal_layer

GROUP_TOKENS = 1 << 13  # frames x places that a temporal layer takes at a time, as far as
GROUPED_FRAMES = 1 << 11  # frames x groups allow: each group has nodes of its own in a graph


class UNet(nn.Module):
    """Predicts the noise or the clean video. States are a list over all temporal layers, in the order of running."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        dim, levels = config.dim, len(config.mults)
        widths = [dim, *(dim * mult for mult in config.mults)]
        time_dim = config.time_width * dim

        def res(channels: int, out: int, timed: bool = True) -> ResnetBlock:
            embeddings = (time_dim, config.cond_dim) if timed else ()
            return ResnetBlock(channels, out, config.groups, config.norm == "frame", *embeddings)

        def level(channels: int, out: int, resample: nn.Module) -> nn.ModuleList:
            spatial = SpatialAttention(out, LinearAttention(out, config.heads))
            return nn.ModuleList([res(channels, out), res(out, out), spatial, self._temporal(out), resample])

        self.init_conv = nn.Conv2d(config.channels, dim, config.init_kernel, padding=config.init_kernel // 2)
        self.init_temporal_layer = self._temporal(dim)
        self.time_mlp = TimeEmbedding(dim, time_dim, config.time_linears)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i in range(levels):
            last = i == levels - 1
            out = widths[i + 1]
            down = nn.Identity() if last else nn.Conv2d(out, out, 4, stride=2, padding=1)
            self.downs.append(level(widths[i], out, down))
        middle = widths[-1]
        self.mid_block1, self.mid_block2 = res(middle, middle), res(middle, middle)
        self.mid_spatial_attn = SpatialAttention(middle, FullAttention(middle, config.heads), depth=2)
        self.mid_temporal_layer = self._temporal(middle)
        for i in reversed(range(levels)):
            up = nn.Identity() if i == 0 else nn.ConvTranspose2d(widths[i], widths[i], 4, 2, 1)
            self.ups.append(level(2 * widths[i + 1], widths[i], up))
        self.final_conv = nn.Sequential(res(2 * dim, dim, timed=False), nn.Conv2d(dim, config.channels, 1))

    def _temporal(self, channels: int) -> TemporalResidual:
        return TemporalResidual(channels, temporal_layer(self.config.temporal, channels))

    def temporal_layers(self) -> Iterator[tuple[TemporalLayer, int]]:
        """Each temporal layer, in the order of running, and at how many halvings of height and width it runs."""
        levels = len(self.config.mults)
        yield self.init_temporal_layer.layer, 0
        for i, down in enumerate(self.downs):
            yield _parts(down)[3].layer, i
        yield self.mid_temporal_layer.layer, levels - 1
        for i, up in enumerate(self.ups):
            yield _parts(up)[3].layer, levels - 1 - i

    def state_shapes(self, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        """Of the states of a stream, all fp32 and zero at its beginning."""
        return [
            shape
            for layer, halvings in self.temporal_layers()
            for shape in layer.state_shapes(batch, (height * width) // LATENT_DOWN ** (2 * halvings))
        ]

    def fix(self, frames: int, streamed: bool) -> None:
        """Computes what S4D layers need for chunks of `frames` frames now, so that a graph holds it as constants."""
        for module in self.modules():
            if isinstance(module, S4D):
                module.fix(frames, streamed)

    def forward(
        self, x: Tensor, time: Tensor, cond: Tensor | None = None, states: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """x [B, F, C, h, w], time [B] or [1] in timesteps, cond [B, cond_dim], states as `state_shapes` says.

        Returns the prediction [B, F, C, h, w] and the states after these frames; without `states`, none.
        """
        frames = x.shape[1]
        run = States(states or [], frames)
        embedding = self.time_mlp(time)
        x = self.init_conv(x.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        x = first = run(self.init_temporal_layer, x)
        skips = []
        for down in self.downs:
            res1, res2, attention, temporal, resample = _parts(down)
            x = attention(res2(res1(x, frames, embedding, cond), frames, embedding, cond))
            x = run(temporal, x)
            skips.append(x)
            x = resample(x)
        x = self.mid_spatial_attn(self.mid_block1(x, frames, embedding, cond))
        x = self.mid_block2(run(self.mid_temporal_layer, x), frames, embedding, cond)
        for up in self.ups:
            res1, res2, attention, temporal, resample = _parts(up)
            x = torch.cat([x, skips.pop()], 1)
            x = attention(res2(res1(x, frames, embedding, cond), frames, embedding, cond))
            x = resample(run(temporal, x))
        block, last = self.final_conv
        x = last(block(torch.cat([x, first], 1), frames))
        return x.unflatten(0, (-1, frames)), run.after


class States:
    """Hands each temporal layer its states in turn and collects those that it leaves."""

    def __init__(self, states: list[Tensor], frames: int) -> None:
        self.before, self.after, self.frames = list(states), list[Tensor](), frames

    def __call__(self, layer: TemporalResidual, x: Tensor) -> Tensor:
        """x [B F, C, h, w] through `layer`."""
        count = len(layer.layer.state_shapes(1, 1)) if self.before else 0
        own, self.before = self.before[:count], self.before[count:]
        x, after = layer(x, self.frames, own)
        self.after += after
        return x


class Normed(nn.Module):
    """`norm` and `fn` under the names that they have in the public code's PreNorm."""

    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn, self.norm = fn, ChannelNorm(channels)


class Wrapped(nn.Module):
    """`fn` and nothing else: one level of a key."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn


class SpatialAttention(nn.Module):
    """x + attention(norm(x)) within each frame."""

    def __init__(self, channels: int, attention: nn.Module, depth: int = 1) -> None:
        super().__init__()
        self.fn = Normed(channels, attention if depth == 1 else Wrapped(attention))

    def forward(self, x: Tensor) -> Tensor:
        """[B F, C, h, w] to the same shape."""
        places = x.permute(0, 2, 3, 1).flatten(1, 2)
        inner = self.fn.fn
        y = (inner.fn if isinstance(inner, Wrapped) else inner)(self.fn.norm(places))
        return x + y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class TemporalResidual(nn.Module):
    """x + layer(norm(x)) over frames."""

    def __init__(self, channels: int, layer: TemporalLayer) -> None:
        super().__init__()
        self.fn = Normed(channels, Wrapped(layer))

    @property
    def layer(self) -> TemporalLayer:
        return self.fn.fn.fn  # type: ignore[return-value]  # torch types submodules as modules or tensors

    def forward(self, x: Tensor, frames: int, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """x [B F, C, h, w] to the same shape; states of this layer, before and after."""
        places = x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (-1, frames))
        if states:
            y, after = self.layer(self.fn.norm(places), states)
        else:
            # Of a long clip a few places at a time: what the layer computes of them stays in a processor's cache.
            fewest = -(-places.shape[2] * frames // GROUPED_FRAMES)
            groups = places.split(max(fewest, GROUP_TOKENS // (len(places) * frames)), 2)
            y, after = torch.cat([self.layer(self.fn.norm(group), [])[0] for group in groups], 2), []
        return x + y.flatten(0, 1).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2), after


Level = tuple[ResnetBlock, ResnetBlock, SpatialAttention, TemporalResidual, nn.Module]


def _parts(level: nn.Module) -> Level:
    """A level of the UNet as what it is made of; the last part halves or doubles height and width, if anything."""
    return cast(Level, tuple(level.children()))
