"""Rotary position embedding over (time, row, column), as Wan2.1 defines it.

Of the d / 2 complex pairs of a head, a third each goes to rows and columns and the rest to time
(22 / 21 / 21 at d = 128). Pairs are adjacent channels. Angles stay in fp32: in bf16 long rollouts break.

Cosines and sines of positions in the window are looked up: there are few of them, and ONNX Runtime has no kernels of
Cos and Sin for CUDA (opset 22), so each run would wait for the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def axis_frequencies(head_dim: int, theta: float) -> list[Tensor]:
    """Angular frequencies per unit of position for time, rows, columns: fp32 [pairs of the axis] each."""
    pairs = head_dim // 2
    spatial = pairs // 3
    sizes = (pairs - 2 * spatial, spatial, spatial)
    return [theta ** (-torch.arange(n, dtype=torch.float64) / n).float() for n in sizes]


class Rotation(NamedTuple):
    """By how much the pairs of tokens are turned: cosines and sines of the angles, fp32 [..., T, pairs] each."""

    cos: Tensor
    sin: Tensor


class Rotary(nn.Module):
    """Positions of frames to the rotation of their tokens. A pair turns along one axis: its other angles are 0."""

    time_cos: Tensor  # of the positions that are tabulated: [positions, pairs]
    time_sin: Tensor
    space_cos: Tensor  # of the tokens of a frame: [frame tokens, pairs]
    space_sin: Tensor
    frequencies: Tensor  # along time, [pairs], 0 for the pairs of rows and columns

    def __init__(self, grid: tuple[int, int], head_dim: int, theta: float, positions: int | None) -> None:
        """`positions`: how many there are, from 0 on; None for no bound."""
        super().__init__()
        self.tabulated = positions is not None
        time, rows, columns = axis_frequencies(head_dim, theta)
        frequencies = torch.cat([time, torch.zeros(len(rows) + len(columns))])
        row = (torch.arange(grid[0])[:, None, None] * rows).expand(*grid, -1)
        column = (torch.arange(grid[1])[None, :, None] * columns).expand(*grid, -1)
        space = torch.cat([torch.zeros(*grid, len(time)), row, column], -1).flatten(0, 1)
        angles = torch.arange(positions or 0)[:, None] * frequencies
        tables = {
            "time_cos": angles.cos(),
            "time_sin": angles.sin(),
            "space_cos": space.cos(),
            "space_sin": space.sin(),
        }
        for name, table in {**tables, "frequencies": frequencies}.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, frame_position: Tensor) -> Rotation:
        """Positions [..., F] to the rotation [..., F * frame tokens, pairs]."""
        if self.tabulated:
            cos, sin = F.embedding(frame_position, self.time_cos), F.embedding(frame_position, self.time_sin)
        else:
            angles = frame_position.float()[..., None] * self.frequencies
            cos, sin = angles.cos(), angles.sin()
        # Of each pair one of the two angles is 0, with cosine 1 and sine 0.
        cos, sin = cos[..., None, :] * self.space_cos, sin[..., None, :] + self.space_sin
        return Rotation(cos.flatten(-3, -2), sin.flatten(-3, -2))


def apply_rope(x: Tensor, rotation: Rotation, heads: int) -> Tensor:
    """Rotates adjacent channel pairs of each head of `x` [B, T, H * d]; keeps x's dtype.

    `rotation`: of [T, pairs] or [B, T, pairs].
    """
    cos, sin = rotation
    if torch.compiler.is_exporting():  # one node for what else is ten
        cos, sin = (table.expand(len(x), -1, -1) for table in (cos, sin))
        return torch.onnx.ops.rotary_embedding(x, cos, sin, interleaved=True, num_heads=heads)
    even, odd = x.float().unflatten(-1, (heads, -1, 2)).unbind(-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-3).to(x.dtype)
