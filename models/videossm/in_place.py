"""What a chunk sees of itself behind the window, in one of two ways.

A copy: window [B, P, D] and chunk [B, T, D] are concatenated, in each pass and layer.

In place: the window has room, [B, 1, P + T, D], and a pass writes the chunk into the last T places. In a graph that is
one ScatterND, which backends do in place where the buffer that it reads is the one that it writes. The second side is
for TensorRT, whose cache update takes [batch, heads, tokens, channels]; all heads are one there, as they lie packed.

At full size copies move 6.9 GB in each pass. A small window is in the processor's cache, and its copy is there for the
attention that follows: `shapes` takes 3% more time in place, on ONNX Runtime's CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

IN_PLACE_SIDES = 4
IN_PLACE_NUMBERS = 1 << 20  # of a window's keys in a layer, from which on passes write in place


def with_room(past: Tensor, tokens: int) -> Tensor:
    """Keys or values [B, P, D] of the window to [B, 1, P + tokens, D], zeros in the last places."""
    room = past.new_zeros(len(past), 1, tokens, past.shape[2])
    return torch.cat([past.unsqueeze(1), room], 2)  # the other way round ONNX Runtime copies once more


def own_places(batch: int, past: int, tokens: int) -> Tensor:
    """Where the `tokens` places behind `past` are in [batch, 1, past + tokens, D]: int64 [batch, 1, tokens, 3]."""
    sides = torch.arange(batch), torch.arange(1), torch.arange(past, past + tokens)
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)


def with_own(window: Tensor, own: Tensor, places: Tensor) -> Tensor:
    """`window` with `own` [B, T, D] behind it: [B, P + T, D], or in place, at `places`, [B, 1, P + T, D]."""
    if window.dim() != IN_PLACE_SIDES:
        return torch.cat([window, own], 1)
    if not torch.compiler.is_exporting():
        return torch.cat([window[:, :, : -own.shape[1]], own.unsqueeze(1)], 2)
    written: Tensor = torch.onnx.ops.symbolic(
        "ScatterND", (window, places, own.unsqueeze(1)), dtype=window.dtype, shape=window.shape, version=18
    )
    return written
