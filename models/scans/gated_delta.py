"""The gated delta rule: a matrix memory S [d_k, d_v] per head, written and read token by token.

    S <- exp(g) S;   S <- S + k (beta (v - S^T k))^T;   o = scale * S^T q

Equation 10 of *Gated Delta Networks* (arXiv 2412.06464) with the decay given as its logarithm g <= 0. The
chunk-parallel form follows the paper's section 3.3, with the inverse of the unit lower-triangular matrix taken by
recursion: ONNX has no triangular solve, and a Neumann series overflows when neighbouring keys correlate.

Shapes, here and everywhere in this module: query, key [B, T, H, d_k]; value [B, T, H, d_v]; decay, beta [B, T, H];
state [B, H, d_k, d_v].
"""

from __future__ import annotations

import torch
from torch import Tensor

from videossm.models.scans.precision import full_precision

SMALLEST_BLOCK = 16  # tokens


def gated_delta_reference(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The rule as it is written, one token after the other, in float64.

    Returns the output [B, T, H, d_v] and the state after the last token [B, H, d_k, d_v], both float64.
    """
    query, key, value, decay, beta, state = (x.double() for x in (query, key, value, decay, beta, state))
    outputs = []
    for t in range(query.shape[1]):
        k, v, q = key[:, t], value[:, t], query[:, t]
        state = decay[:, t, :, None, None].exp() * state
        seen = torch.einsum("bhkv,bhk->bhv", state, k)
        state = state + torch.einsum("bhk,bhv->bhkv", k, beta[:, t, :, None] * (v - seen))
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q))
    return torch.stack(outputs, 1), state


def gated_delta_chunked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    block_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same, `block_size` tokens at a time, differentiable, in fp32 whatever the inputs' type.

    `block_size` is a power of two; by default about half of d_k, which was the fastest on a CPU (16 for d_k = 32,
    twice as fast as 64; 64 for d_k = 128).

    Returns the output [B, T, H, d_v] in value's type and the last state [B, H, d_k, d_v] in fp32 (float64 if the
    inputs are). Made of operations that standard ONNX has.

    Raises ValueError when `block_size` is no power of two.
    """
    if block_size is None:
        block_size = max(SMALLEST_BLOCK, 1 << (key.shape[-1] // 2 - 1).bit_length())
    if block_size < 1 or block_size & (block_size - 1):
        raise ValueError(f"block_size: got {block_size}, expected a power of two; leave it out for the default")
    with full_precision(value):
        return _chunked(query, key, value, decay, beta, state, scale, block_size)


def _chunked(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor, scale: float, block_size: int
) -> tuple[Tensor, Tensor]:
    tokens, kind = value.shape[1], torch.promote_types(value.dtype, torch.float32)
    block = min(block_size, 1 << (tokens - 1).bit_length())  # a short sequence is one block
    state = state.to(kind)
    q, k, v, g, b = (_blocks(x.to(kind), block) for x in (query, key, value, decay[..., None], beta[..., None]))

    # Within a block, token i sees what token j <= i wrote, decayed by exp(g_{j+1} + ... + g_i). The sums are formed
    # one by one: the difference of two cumulated sums loses all digits behind one token of extreme decay.
    lower = torch.ones(block, block, dtype=torch.bool, device=value.device).tril()
    strictly = lower.tril(-1)
    between = torch.where(strictly, g, 0).cumsum(-2).exp()  # [B, H, n, C, C]; 1 above the diagonal
    entered = g.cumsum(-2).exp()  # from the block's entry to token i, [B, H, n, C, 1]
    left = between[..., -1, :, None]  # from token j to the block's end, [B, H, n, C, 1]

    # (I + A) u = beta (v - exp(.) S^T k) for the block's writes u, so u = fresh - stale S.
    keys = k.transpose(-1, -2)
    system = torch.where(strictly, b * (k @ keys) * between, 0)
    inverse = unit_lower_inverse(system)
    fresh = inverse @ (b * v)
    stale = inverse @ (b * entered * k)

    # Only the state goes from block to block: S <- exp(.) S + kept u.
    kept = (left * k).transpose(-1, -2)
    state = state[:, :, None]
    before: list[Tensor] = []
    writes: list[Tensor] = []
    blocks = zip(*(x.split(1, 2) for x in (fresh, stale, kept, entered[..., -1:, :])), strict=True)
    for fresh_block, stale_block, kept_block, decayed in blocks:
        before.append(state)
        writes.append(fresh_block - stale_block @ state)
        state = decayed * state + kept_block @ writes[-1]

    attention = torch.where(lower, (q @ keys) * between, 0)
    output = scale * ((entered * q) @ torch.cat(before, 2) + attention @ torch.cat(writes, 2))
    output = output.flatten(2, 3)[:, :, :tokens].transpose(1, 2)
    return output.to(value.dtype), state[:, :, 0]


def unit_lower_inverse(strict: Tensor) -> Tensor:
    """(I + strict)^-1 for strictly lower-triangular `strict` [..., n, C, C], C a power of two.

    By halves: [[L, 0], [M, R]]^-1 = [[L^-1, 0], [-R^-1 M L^-1, R^-1]], both halves of a level at once. They are put
    one after the other into dimension n: TensorRT has tensors of at most 8 dimensions.
    """
    size = strict.shape[-1]
    if size <= 2:
        return torch.eye(size, dtype=strict.dtype, device=strict.device) - strict
    half = size // 2
    halves = torch.cat([strict[..., :half, :half], strict[..., half:, half:]], -3)
    left, right = unit_lower_inverse(halves).chunk(2, -3)
    corner = -(right @ strict[..., half:, :half] @ left)
    # The zeros are those of `strict`: ONNX Runtime has no kernel of Pad for CUDA (opset 23).
    upper = torch.cat([left, strict[..., :half, half:]], -1)
    return torch.cat([upper, torch.cat([corner, right], -1)], -2)


def _blocks(x: Tensor, block: int) -> Tensor:
    """[B, T, H, d] to [B, H, n, block, d]; the last block is filled with zeros, which write and decay nothing."""
    missing = -x.shape[1] % block
    if missing:
        x = torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], 1)
    return x.transpose(1, 2).unflatten(2, (-1, block))
