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


def with_own(window: Tensor, own: Tensor) -> Tensor:
    """`window` [B, 1, P + T, D] with `own` [B, T, D] in the last T places."""
    batch, _, places, _ = window.shape
    start = places - own.shape[1]
    if not torch.compiler.is_exporting():
        return torch.cat([window[:, :, :start], own.unsqueeze(1)], 2)
    rows = torch.cartesian_prod(torch.arange(batch), torch.zeros(1, dtype=torch.int64), torch.arange(start, places))
    where = rows.unflatten(0, (batch, 1, -1))
    written: Tensor = torch.onnx.ops.symbolic(
        "ScatterND", (window, where, own.unsqueeze(1)), dtype=window.dtype, shape=window.shape, version=18
    )
    return written
