"""The window's buffers, in whose last places a pass writes the chunk's own keys or values.

    [B, 1, P + T, D]: P tokens of the window, then T of the chunk

A concatenation would copy the window in each pass. In a graph the writing is one ScatterND, which backends do in place
where the buffer that it reads is the one that it writes. The second side is for TensorRT, whose cache update takes
[batch, heads, tokens, channels]; all heads are one there, as they lie packed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_room(past: Tensor, tokens: int) -> Tensor:
    """Keys or values [B, P, D] of the window to [B, 1, P + tokens, D], zeros in the last places."""
    room = past.new_zeros(len(past), 1, tokens, past.shape[2])
    return torch.cat([past.unsqueeze(1), room], 2)  # the other way round ONNX Runtime copies once more


def own_places(batch: int, past: int, tokens: int) -> Tensor:
    """Where the `tokens` places behind `past` are in [batch, 1, past + tokens, D]: int64 [batch, 1, tokens, 3]."""
    sides = torch.arange(batch), torch.arange(1), torch.arange(past, past + tokens)
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)


def with_own(window: Tensor, own: Tensor, places: Tensor) -> Tensor:
    """`window` [B, 1, P + T, D] with `own` [B, T, D] in the last T places, which are those of `own_places`."""
    if not torch.compiler.is_exporting():
        return torch.cat([window[:, :, : -own.shape[1]], own.unsqueeze(1)], 2)
    written: Tensor = torch.onnx.ops.symbolic(
        "ScatterND", (window, places, own.unsqueeze(1)), dtype=window.dtype, shape=window.shape, version=18
    )
    return written
