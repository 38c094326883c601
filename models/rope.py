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


def spatial_angles(grid: tuple[int, int], head_dim: int, theta: float) -> Tensor:
    """Angles of the tokens of one frame along rows and columns: fp32 [frame tokens, row + column pairs]."""
    rows, columns = grid
    _, row_freq, column_freq = axis_frequencies(head_dim, theta)
    row = torch.arange(rows)[:, None, None] * row_freq
    column = torch.arange(columns)[None, :, None] * column_freq
    return torch.cat([row.expand(rows, columns, -1), column.expand(rows, columns, -1)], -1).flatten(0, 1)


def token_angles(frame_position: Tensor, time_freq: Tensor, spatial: Tensor) -> Tensor:
    """Angles of all tokens of frames at `frame_position` [..., F]: fp32 [..., F * frame tokens, pairs]."""
    time = frame_position.float()[..., None] * time_freq
    tokens = spatial.shape[0]
    time = time[..., None, :].expand(*time.shape[:-1], tokens, time.shape[-1])
    space = spatial.expand(*time.shape[:-1], spatial.shape[-1])
    return torch.cat([time, space], -1).flatten(-3, -2)


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
