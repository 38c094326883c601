"""Mamba-1's selective scan (S6): a diagonal state x [N] per channel whose step size, input and read-out are per token.

    x <- exp(dt A) x + dt B u;   y = C . x + D u;   y <- y * silu(z);   dt = delta + delta_bias, or its softplus

Equation 2 of *Mamba* (arXiv 2312.00752) with the arguments and the layout of mamba-ssm's `selective_scan_fn`, plus a
state that is given and one that is returned.

Shapes, here and everywhere in this module: u, delta, z [B, D, T]; A [D, N], negative; B, C [B, N, T]; D, delta_bias
[D]; state [B, D, N].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from videossm.models.scans.precision import full_precision

BLOCK_VALUES = 1 << 22  # of the states of a block's tokens


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, one token after the other, in float64.

    Returns y [B, D, T] and the state after the last token [B, D, N], both float64.
    """
    u, delta, A, B, C, state = (x.double() for x in (u, delta, A, B, C, state))
    if delta_bias is not None:
        delta = delta + delta_bias.double()[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    outputs = []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        state = (step * A).exp() * state + step * B[:, None, :, t] * u[:, :, t, None]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    y = torch.stack(outputs, 2)
    if D is not None:
        y = y + D.double()[:, None] * u
    if z is not None:
        y = y * F.silu(z.double())
    return y, state


def selective_scan_parallel(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same in blocks of about log2(T) batched steps, differentiable, in fp32 whatever the inputs' type.

    The states of all tokens of a block are in memory at once, so a block has the fewer tokens the larger a state is.

    Returns y [B, D, T] in u's type and the last state [B, D, N] in fp32 (float64 if the inputs are). Made of
    operations that standard ONNX has.
    """
    kind = torch.promote_types(u.dtype, torch.float32)
    with full_precision(u):
        inputs = u.to(kind)
        step = delta.to(kind)
        if delta_bias is not None:
            step = step + delta_bias.to(kind)[:, None]
        if delta_softplus:
            step = F.softplus(step)
        # Tokens before channels, so that halving the sequence copies whole rows: [B, T, ..].
        parts = (x.to(kind).transpose(1, 2) for x in (step, step * inputs, B, C))
        tokens = max(1, BLOCK_VALUES // state.numel())
        blocks, last = [], state.to(kind)
        for rate, written, into, read in zip(*(part.split(tokens, 1) for part in parts), strict=True):
            decay, write = (rate[..., None] * A.to(kind)).exp(), written[..., None] * into[:, :, None]
            states = linear_recurrence(decay, write, last)  # [B, T, D, N]
            blocks.append((states @ read[..., None]).squeeze(-1))
            last = states[:, -1]
        y = torch.cat(blocks, 1).transpose(1, 2)
        if D is not None:
            y = y + D.to(kind)[:, None] * inputs
        if z is not None:
            y = y * F.silu(z.to(kind))
        return y.to(u.dtype), last


def linear_recurrence(decay: Tensor, write: Tensor, state: Tensor) -> Tensor:
    """All x_t = decay_t * x_{t-1} + write_t for decay, write [B, T, ...] and x_{-1} = state [B, ...]: [B, T, ...].

    Two tokens in a row are one step of the same form, so the odd tokens are a recurrence of half the length and the
    even ones follow from them. Nothing is divided by a cumulated decay: any decay in [0, 1] is safe.
    """
    tokens = decay.shape[1]
    if tokens == 1:
        return decay * state[:, None] + write
    pairs = tokens // 2
    first_decay, second_decay = decay[:, : 2 * pairs].unflatten(1, (pairs, 2)).unbind(2)
    first_write, second_write = write[:, : 2 * pairs].unflatten(1, (pairs, 2)).unbind(2)
    second = linear_recurrence(second_decay * first_decay, second_decay * first_write + second_write, state)
    before = torch.cat([state[:, None], second[:, :-1]], 1)
    first = first_decay * before + first_write
    both = torch.stack([first, second], 2).flatten(1, 2)
    if tokens % 2:
        last = decay[:, -1:] * both[:, -1:] + write[:, -1:]
        both = torch.cat([both, last], 1)
    return both
