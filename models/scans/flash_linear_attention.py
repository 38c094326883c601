"""flash-linear-attention's gated delta functions, in torch operations and `videossm::gated_delta_scan`.

They take and return what the functions of the same names do in fla 0.5 and 0.6, whose kernels need a GPU. What those
kernels fuse, activations of the gates and norms of queries and keys, are torch operations here.

Shapes, here and everywhere in this module: q, k [B, T, H, d_k]; v [B, T, Hv, d_v], where Hv / H heads in a row share a
query and a key; g, beta [B, T, Hv]; A_log, dt_bias [Hv]; state [B, Hv, d_k, d_v], or [B, Hv, d_v, d_k] with
`state_v_first`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from videossm.models.scans.errors import CaptureError
from videossm.models.scans.operators import gated_delta_scan

NORM_EPS = 1e-6  # fla's x / sqrt(|x|^2 + eps); the operator's own norm has another bound
WITHOUT_EFFECT = ("chunk_size",)  # on what is computed
INSTEAD = {
    "cp_context": "run it in one process",
    "cu_seqlens": "call it once for each sequence",
    "gk": "pass one gate a head, g",
    "gv": "pass one gate a head, g",
}


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """fla's. See `fused_recurrent_gated_delta_rule`, which computes the same."""
    return _gated_delta(q, k, v, g, beta, scale, initial_state, output_final_state, **options)


def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """fla's. Without g nothing decays, without beta it is 1; scale is 1 / sqrt(d_k) unless it is given.

    Returns the output [B, T, Hv, d_v] in v's type and the final state, fp32, or None without `output_final_state`.
    Raises CaptureError for an option that no scan operator has, and for shapes that do not go together.
    """
    g = v.new_zeros(v.shape[:3]) if g is None else g
    beta = v.new_ones(v.shape[:3]) if beta is None else beta
    return _gated_delta(q, k, v, g, beta, scale, initial_state, output_final_state, gk=gk, gv=gv, **options)


def _gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    *,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    transpose_state_layout: bool = False,  # its older name
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    _refuse(others)
    heads, repeats = v.shape[2], v.shape[2] // k.shape[2]
    if q.shape != k.shape or heads != repeats * k.shape[2]:
        raise CaptureError(
            f"q, k, v: got {list(q.shape)}, {list(k.shape)}, {list(v.shape)}, expected q like k and a multiple of "
            "their heads in v; mend the shapes"
        )
    _check_shape("g", g, tuple(v.shape[:3]))
    _check_shape("beta", beta, tuple(v.shape[:3]))
    wide = torch.promote_types(v.dtype, torch.float32)  # of gates and state, whatever the activations are
    decay, beta = g.to(wide), beta.to(wide)
    if use_gate_in_kernel:
        decay = _activated(decay, A_log, dt_bias)
    if use_beta_sigmoid_in_kernel:
        beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
    if use_qk_l2norm_in_kernel:
        q, k = _normalized(q, wide), _normalized(k, wide)
    if repeats > 1:
        q, k = q.repeat_interleave(repeats, 2), k.repeat_interleave(repeats, 2)

    shape, v_first = (v.shape[0], heads, k.shape[3], v.shape[3]), state_v_first or transpose_state_layout
    if initial_state is None:
        state = v.new_zeros(shape, dtype=wide)
    else:
        state = initial_state.to(wide)
        state = state.transpose(2, 3) if v_first else state
        _check_shape("initial_state, keys before values", state, shape)
    scale = k.shape[3] ** -0.5 if scale is None else scale
    output, last = gated_delta_scan(q.to(v.dtype), k.to(v.dtype), v, decay, beta, state, scale)
    if not output_final_state:
        return output, None
    return output, last.transpose(2, 3) if v_first else last


def _activated(gate: Tensor, A_log: Tensor | None, dt_bias: Tensor | None) -> Tensor:
    """-exp(A_log) softplus(gate + dt_bias)."""
    if A_log is None:
        raise CaptureError("A_log: got None, expected [Hv] beside use_gate_in_kernel; pass it")
    if dt_bias is not None:
        gate = gate + dt_bias.to(gate.dtype)
    return -A_log.to(gate.dtype).exp() * F.softplus(gate)


def _normalized(x: Tensor, wide: torch.dtype) -> Tensor:
    x = x.to(wide)
    return x * (x.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt()


def _refuse(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name not in WITHOUT_EFFECT and value is not None and value is not False:
            got = list(value.shape) if isinstance(value, Tensor) else value
            mend = INSTEAD.get(name, "leave it out")
            raise CaptureError(f"{name}: got {got}, expected none, which is what scan operators have; {mend}")


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape:
        raise CaptureError(f"{name}: got {list(x.shape)}, expected {list(shape)}; mend the shape")
