"""mamba-ssm's functions and its layer `Mamba`, in torch operations and `videossm::selective_scan`.

The first three take and return what the functions of the same names do, of mamba-ssm 2 and causal-conv1d 1, whose
kernels need CUDA. `mamba_chunk` is the layer with its state given and returned, for any number of tokens.

Shapes, here and everywhere in this module: u, delta, z [B, E, T]; A [E, N]; D, delta_bias [E]; B, C [B, N, T], or
[B, G, N, T], where E / G channels in a row share a group; the scan's state [B, E, N], fp32; the convolution's state,
which is its last inputs, [B, E, K-1].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from videossm.models.scans.errors import CaptureError
from videossm.models.scans.operators import selective_scan

ACTIVATIONS = (None, "silu", "swish")


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """mamba-ssm's, which starts from zeros, with an `initial_state` beside. G groups become G scans.

    Returns y [B, E, T] in u's type; with `return_last_state` also the state after the last token.
    Raises CaptureError for complex numbers, for B or C without tokens, and for shapes that do not go together.
    """
    y, last = _scanned(u, delta, A, B, C, initial_state, D, z, delta_bias, delta_softplus)
    return (y, last) if return_last_state else y


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """The layer between its two outer projections, xz [B, 2 E, T], and the second of them: [B, T, d_model].

    Raises CaptureError for the norms of B, C and delta.
    """
    for name, weight in (
        ("b_rms_weight", b_rms_weight),
        ("c_rms_weight", c_rms_weight),
        ("dt_rms_weight", dt_rms_weight),
    ):
        if weight is not None:
            raise CaptureError(
                f"{name}: got a weight, expected None; write the norm beside a call of selective_scan_fn"
            )
    x, z = xz.chunk(2, 1)
    past = xz.new_zeros(*x.shape[:2], conv1d_weight.shape[2] - 1)
    x = F.silu(_convolved(x, conv1d_weight.flatten(1), conv1d_bias, past)[0])
    rank, states = delta_proj_weight.shape[1], A.shape[1]
    projected = F.linear(x.transpose(1, 2), x_proj_weight)
    delta = F.linear(projected[..., :rank], delta_proj_weight).transpose(1, 2)
    if B is None:
        B = _plus(projected[..., rank : rank + states], B_proj_bias).transpose(1, 2)
    if C is None:
        C = _plus(projected[..., -states:], C_proj_bias).transpose(1, 2)
    y, _ = _scanned(x, delta, A, B, C, None, D, z, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """A convolution of each channel of x [B, E, T] with its row of weight [E, K], over a token and those before it.

    Returns [B, E, T]; with `return_final_states` also the state [B, E, K-1].
    Raises CaptureError for several sequences in one (`seq_idx`) and for an activation that causal-conv1d has not.
    """
    if seq_idx is not None:
        raise CaptureError("seq_idx: got a tensor, expected None; call it once for each sequence")
    if activation not in ACTIVATIONS:
        raise CaptureError(f"activation: got {activation!r}, expected one of {ACTIVATIONS}; apply it afterwards")
    if initial_states is None:
        initial_states = x.new_zeros(*x.shape[:2], weight.shape[1] - 1)
    out, last = _convolved(x, weight, bias, initial_states)
    if activation is not None:
        out = F.silu(out)
    if final_states_out is not None:
        last = final_states_out.copy_(last)
    return (out, last) if return_final_states else out


def mamba_states(layer: Any, batch: int) -> tuple[Tensor, Tensor]:
    """What a stream starts from: zeros [B, E, K-1] in the layer's type and zeros [B, E, N] in fp32."""
    weight = _mamba(layer).conv1d.weight
    channels, _, width = weight.shape
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.new_zeros(batch, channels, width - 1), weight.new_zeros(batch, *layer.A_log.shape, dtype=wide)


def mamba_chunk(layer: Any, hidden: Tensor, conv_state: Tensor, scan_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`mamba_ssm.Mamba` over the next T >= 1 tokens, from the state that the tokens before them left.

    Calls with the state carried give what one `layer(hidden)` over all tokens gives. mamba-ssm is not needed for it,
    nor is `captured_scans`.

    Args:
        layer: its weights are read; they stay its own.
        hidden: [B, T, d_model].
        conv_state: [B, E, K-1] in the layer's type. mamba-ssm's own has one column more, the oldest, first.
        scan_state: [B, E, N], fp32.

    Returns:
        The output [B, T, d_model] and both states after the last token.

    Raises:
        CaptureError: another layer, or a state of another shape.
    """
    wanted = [tuple(x.shape) for x in mamba_states(layer, hidden.shape[0])]
    for name, state, shape in zip(("conv_state", "scan_state"), (conv_state, scan_state), wanted, strict=True):
        _check_shape(name, state, shape)
    x, z = layer.in_proj(hidden).transpose(1, 2).chunk(2, 1)
    x, conv_state = _convolved(x, layer.conv1d.weight.flatten(1), layer.conv1d.bias, conv_state)
    x = F.silu(x)
    delta, B, C = layer.x_proj(x.transpose(1, 2)).split([layer.dt_rank, layer.d_state, layer.d_state], -1)
    y, scan_state = _scanned(
        x,
        F.linear(delta, layer.dt_proj.weight).transpose(1, 2),
        -layer.A_log.float().exp(),
        B.transpose(1, 2),
        C.transpose(1, 2),
        scan_state,
        layer.D,
        z,
        layer.dt_proj.bias,
        True,
    )
    return layer.out_proj(y.transpose(1, 2)), conv_state, scan_state


def _scanned(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The operator, once for each group, with the types that it wants: y [B, E, T] and the last state."""
    for name, x in (("A", A), ("B", B), ("C", C)):
        if x.is_complex():
            raise CaptureError(f"{name}: got {x.dtype}, expected real numbers; there is no scan of complex ones")
    writes, reads = _groups("B", B), _groups("C", C)
    groups, channels = len(writes), u.shape[1]
    if len(reads) != groups or channels % groups:
        raise CaptureError(
            f"B, C: got {groups} and {len(reads)} groups for {channels} channels, expected one number that divides "
            "the channels; repeat the groups of one of them"
        )
    wide = torch.promote_types(u.dtype, torch.float32)  # of weights and state, whatever the activations are
    if state is None:
        state = u.new_zeros(u.shape[0], *A.shape, dtype=wide)
    _check_shape("initial_state", state, (u.shape[0], *A.shape))
    parts = zip(
        _split(u, groups, 1),
        _split(delta, groups, 1),
        _split(A.to(wide), groups, 0),
        (x.to(u.dtype) for x in writes),
        (x.to(u.dtype) for x in reads),
        _split(state.to(wide), groups, 1),
        _split(None if D is None else D.to(wide), groups, 0),
        _split(None if z is None else z.to(u.dtype), groups, 1),
        _split(None if delta_bias is None else delta_bias.to(wide), groups, 0),
        strict=True,
    )
    ys, states = zip(*(selective_scan(*part, delta_softplus) for part in parts), strict=True)
    return _joined(ys), _joined(states)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    inputs = torch.cat([state, x], 2)
    return F.conv1d(inputs, weight[:, None], bias, groups=weight.shape[0]), inputs[..., x.shape[2] :]


def _mamba(layer: Any) -> Any:
    if not all(hasattr(layer, name) for name in ("in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D", "out_proj")):
        raise CaptureError(f"layer: got {type(layer).__name__}, expected a mamba_ssm.Mamba; pass one")
    return layer


def _check_shape(name: str, state: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(state.shape) != shape:
        raise CaptureError(f"{name}: got {list(state.shape)}, expected {list(shape)}; start from mamba_states")


def _groups(name: str, x: Tensor) -> tuple[Tensor, ...]:
    """B or C of each group, [B, N, T]."""
    if x.dim() not in (3, 4):
        raise CaptureError(
            f"{name}: got {list(x.shape)}, the same for all tokens, expected [B, N, T] or [B, G, N, T]; expand it"
        )
    return (x,) if x.dim() == 3 else x.unbind(1)


def _split(x: Tensor | None, groups: int, dim: int) -> tuple[Tensor | None, ...]:
    """Part of each group. One group is left as it is, so that a graph has no split of it."""
    if x is None or groups == 1:
        return (x,) * groups
    return x.chunk(groups, dim)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)
