"""Rotary position embedding over (time, row, column), as Wan2.1 defines it.

Of the d / 2 complex pairs of a head, a third each goes to rows and columns and the rest to time
(22 / 21 / 21 at d = 128). Pairs are adjacent channels. Angles stay in fp32: in bf16 long rollouts break.
"""

from __future__ import annotations

import torch
from torch import Tensor


def axis_frequencies(head_dim: int, theta: float) -> list[Tensor]:
    """Angular frequencies per unit of position for time, rows, columns: fp32 [pairs of the axis] each."""
    pairs = head_dim // 2
    spatial = pairs // 3
    sizes = (pairs - 2 * spatial, spatial, spatial)
    return [theta ** (-torch.arange(n, dtype=torch.float64) / n).float() for n in sizes]


def time_frequencies(head_dim: int, theta: float) -> Tensor:
    """Angular frequencies along time: fp32 [pairs], 0 for the pairs of rows and columns."""
    time, rows, columns = axis_frequencies(head_dim, theta)
    return torch.cat([time, torch.zeros(len(rows) + len(columns))])


def spatial_angles(grid: tuple[int, int], head_dim: int, theta: float) -> Tensor:
    """Angles of the tokens of one frame along rows and columns: fp32 [frame tokens, pairs], 0 for those of time."""
    rows, columns = grid
    time, row_freq, column_freq = axis_frequencies(head_dim, theta)
    row = torch.arange(rows)[:, None, None] * row_freq
    column = torch.arange(columns)[None, :, None] * column_freq
    parts = [torch.zeros(rows, columns, len(time)), row.expand(rows, columns, -1), column.expand(rows, columns, -1)]
    return torch.cat(parts, -1).flatten(0, 1)


def token_angles(frame_position: Tensor, time: Tensor, spatial: Tensor) -> Tensor:
    """Angles of all tokens of frames at `frame_position` [..., F]: fp32 [..., F * frame tokens, pairs].

    `time`: `time_frequencies`; `spatial`: `spatial_angles`.
    """
    return (frame_position.float()[..., None, None] * time + spatial).flatten(-3, -2)


def apply_rope(x: Tensor, angles: Tensor, heads: int) -> Tensor:
    """Rotates adjacent channel pairs of each head of `x` [B, T, H * d]; keeps x's dtype.

    `angles`: [T, d / 2] or [B, T, d / 2].
    """
    cos, sin = angles.cos(), angles.sin()
    if torch.compiler.is_exporting():  # one node for what else is ten
        cos, sin = (table.expand(len(x), -1, -1) for table in (cos, sin))
        return torch.onnx.ops.rotary_embedding(x, cos, sin, interleaved=True, num_heads=heads)
    even, odd = x.float().unflatten(-1, (heads, -1, 2)).unbind(-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-3).to(x.dtype)
