"""The scans as torch operators, `videossm::gated_delta_scan` and `videossm::selective_scan`, for export.

An exported graph keeps each call as one node, which a lowering then turns into what a backend runs. Run eagerly they
compute the chunk-parallel implementations. They have no gradient: training calls those implementations directly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from videossm.models.scans.gated_delta import gated_delta_chunked
from videossm.models.scans.selective_scan import selective_scan_parallel


@torch.library.custom_op("videossm::gated_delta_scan", mutates_args=())
def gated_delta_scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    normalize_key: bool = False,
    normalize_query: bool = False,
) -> tuple[Tensor, Tensor]:
    """`gated_delta_chunked`: query, key [B, T, H, d_k], value [B, T, H, d_v], decay, beta [B, T, H], state
    [B, H, d_k, d_v] to the output [B, T, H, d_v] in value's type and the last state in fp32.

    `normalize_key`, `normalize_query`: x / max(|x|, 1e-12) over d_k first."""
    if normalize_key:
        key = F.normalize(key.float(), dim=-1)
    if normalize_query:
        query = F.normalize(query.float(), dim=-1)
    output, last = gated_delta_chunked(query, key, value, decay, beta, state, scale)
    return output.contiguous(), last.contiguous()


@gated_delta_scan.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    normalize_key: bool = False,
    normalize_query: bool = False,
) -> tuple[Tensor, Tensor]:
    return value.new_empty(value.shape), _new_state(state, value)


@torch.library.custom_op("videossm::selective_scan", mutates_args=())
def selective_scan(
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
    """`selective_scan_parallel`: u, delta, z [B, D, T], A [D, N], B, C [B, N, T], D, delta_bias [D], state [B, D, N]
    to y [B, D, T] in u's type and the last state in fp32."""
    y, last = selective_scan_parallel(u, delta, A, B, C, state, D, z, delta_bias, delta_softplus)
    return y.contiguous(), last.clone(memory_format=torch.contiguous_format)


@selective_scan.register_fake
def _(
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
    return u.new_empty(u.shape), _new_state(state, u)


def _new_state(state: Tensor, values: Tensor) -> Tensor:
    return state.new_empty(state.shape, dtype=torch.promote_types(values.dtype, torch.float32))
