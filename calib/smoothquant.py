"""SmoothQuant (Xiao et al., arXiv 2211.10438): outliers of activations moved into the weights that multiply them.

For a tensor X that linears W_1 .. W_n read, and every input channel j:

    s_j = max|X_j|^alpha / max_i |W_ij|^(1 - alpha)         within BOUNDS; 1 where either maximum is 0
    before  y_i = MatMul(X, W_i)
    after   y_i = MatMul(X / s, diag(s) W_i)

X / s costs nothing where what makes X can make X / s instead: an affine LayerNormalization that only these linears
read has its weight and bias divided by s. Elsewhere it is one Mul in front of the linears, and what else reads X keeps
reading it: behind a norm that is modulated by the noise level, behind GELU, which no scale passes through, and behind
attention. Convolutions are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from videossm.calib.graph import add_constant, add_value_info, drop_unread, initializers, readers, rebuild, values_of
from videossm.calib.linears import Linear

BOUNDS = (1e-3, 1e3)  # of s: a channel that is nearly dead must not blow up a weight


def smooth(
    model: ModelProto,
    linears: Sequence[Linear],
    channel_amax: Mapping[str, NDArray[np.float32]],
    alpha: float,
    folder: Path | None = None,
) -> dict[str, str]:
    """Smooths every tensor in `channel_amax` that the given linears multiply, in `model` itself.

    Args:
        linears: those that will be quantised; other readers of their inputs are left alone.
        channel_amax: largest magnitude of each channel, [K], by tensor.
        alpha: 0 leaves the outliers in the activations, 1 moves them to the weights altogether.
        folder: where the weights lie that were not loaded with the model.

    Returns for each smoothed tensor the one that the linears read now, the same where a norm was changed. What was
    observed of it before no longer holds, and the linears must be found again.
    """
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        if linear.input in channel_amax and linear.operator == "MatMul":
            groups.setdefault(linear.input, []).append(linear)
    nodes = {node.name: node for node in model.graph.node}
    before: dict[str, list[NodeProto]] = {}
    renamed: dict[str, str] = {}
    for tensor, group in groups.items():
        rows = np.max([np.abs(_weight(model, linear, folder)).max(1) for linear in group], 0)
        scale = smoothing_scale(channel_amax[tensor], rows, alpha)
        norm = _foldable_norm(model, tensor, {linear.node for linear in group})
        if norm is not None:
            renamed[tensor] = tensor
            _fold(model, norm, tensor, scale, folder)
        else:
            renamed[tensor] = f"{tensor}.smooth"
            factor = add_constant(model, f"{tensor}.smooth.factor", 1 / scale)
            multiply = helper.make_node("Mul", [tensor, factor], [renamed[tensor]], name=renamed[tensor])
            before[group[0].node] = [multiply]
            add_value_info(model, tensor, renamed[tensor])
        for linear in group:
            weight = _weight(model, linear, folder) * scale[:, None]
            name = add_constant(model, f"{linear.name}.weight.smooth", weight)
            nodes[linear.node].input[:] = [renamed[tensor], name]
            drop_unread(model, {linear.weight})
    rebuild(model, before)
    return renamed


def smoothing_scale(
    channel_amax: NDArray[np.float32], row_amax: NDArray[np.float32], alpha: float
) -> NDArray[np.float32]:
    """s from the largest magnitudes of the tensor's channels and of the weights' rows, [K] each."""
    alive = (channel_amax > 0) & (row_amax > 0)
    x, w = (np.where(alive, maxima, 1.0) for maxima in (channel_amax, row_amax))
    return np.clip(x**alpha / w ** (1 - alpha), *BOUNDS).astype(np.float32)


def _weight(model: ModelProto, linear: Linear, folder: Path | None) -> NDArray[np.float32]:
    return values_of(initializers(model)[linear.weight], folder)


def _foldable_norm(model: ModelProto, tensor: str, linears: set[str]) -> NodeProto | None:
    """The affine norm that makes `tensor`, if nothing but the named nodes reads that."""
    read = {node.name for node in readers(model)[tensor]}
    if read != linears or any(value.name == tensor for value in model.graph.output):
        return None
    for node in model.graph.node:
        if tensor in node.output:
            affine = node.op_type == "LayerNormalization" and len(node.input) == 3
            return node if affine and initializers(model).keys() >= set(node.input[1:]) else None
    return None


def _fold(model: ModelProto, norm: NodeProto, tensor: str, scale: NDArray[np.float32], folder: Path | None) -> None:
    """Divides weight and bias by the scale. They become constants of their own: equal ones are stored once."""
    old, tensors = list(norm.input[1:]), initializers(model)
    for place, label in ((1, "weight"), (2, "bias")):
        values = values_of(tensors[norm.input[place]], folder) / scale
        norm.input[place] = add_constant(model, f"{tensor}.smooth.{label}", values)
    drop_unread(model, old)
