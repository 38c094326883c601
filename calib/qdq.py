"""Q/DQ pairs around the chosen linears and, on request, around the two products of attention.

    before  y = MatMul(x, W) -> Add(bias)                                       W fp32 [K, N]
    after   y = MatMul(QDQ(x), DequantizeLinear<axis=1>(W.q, W.scale, W.zero)) -> Add(bias)
            QDQ(x) = DequantizeLinear(QuantizeLinear(x, x.scale, x.zero), x.scale, x.zero)

    before  y = Conv(x, W, bias)                                                W fp32 [M, C, ..]
    after   y = Conv(QDQ(x), DequantizeLinear<axis=0>(W.q, W.scale, W.zero), bias)

An activation has one scale, [] fp32; a weight is stored in 8 bits with a scale per output channel, [N] fp32. All of it
is symmetric: int8 in [-127, 127] (activations saturate at -128), fp8 (E4M3) in [-448, 448]. But for what is almost of
one sign, as GELU makes it: there int8's zero point moves all 256 codes to that side. What else reads x, a gate for one,
reads it in fp32 still.

Constraints, all of them from ONNX Runtime 1.31 on a CPU; TensorRT-RTX 1.7 takes what comes of them:
- Zero points are written out: without one it takes int8 for uint8.
- A pair for every linear, with constants of its own, even where several read x. In int8 it fuses a product only if
  its QuantizeLinear has no other reader (x86), and merges two with the same constants: of the 48 linears that a
  `shapes` pass had before q, k and v were merged, shared pairs leave 18 in fp32, and 3.3 ms where this takes 2.2. In
  fp8, a linear that only a shared pair reads is fused with it, to what has no fp8 kernel.
- int8: the bias of a product is [1, .., 1, N], with as many dimensions as the product, or it merges the two to a Gemm,
  which it refuses in int8. So a linear is one MatMulIntegerToFloat, and its input must have three dimensions or more.
- fp8: the bias is [N], to make that very Gemm; it takes a product without one for int8 and refuses the graph.

Attention, whose probabilities in [0, 1] need no calibration:

    before  y = Attention<q_num_heads>(q, k, v, mask)                           packed, [B, T, heads * d]
    after   scores = MatMul(QDQ(heads(q)), QDQ(heads(k)^T)) / sqrt(d)           heads: Reshape, Transpose
            y = pack(MatMul(QDQ(Softmax(Where(mask, scores, LOWEST))), QDQ(heads(v))))

Constraints: a bool mask or none, as many heads of keys as of queries, static shapes. The products have no bias, so in
fp8 a session needs the entry session.disable_quant_qdq=1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray
from onnx import ModelProto, NodeProto, helper

from videossm.calib.graph import (
    add_constant,
    drop_unread,
    initializers,
    rebuild,
    replace_input,
    values_by_name,
    values_of,
)
from videossm.calib.linears import Linear, Product
from videossm.calib.observers import FORMATS, Codes, EightBits
from videossm.runtime.errors import UserError

LOWEST = -65504.0  # a masked score: finite in every type that a graph may be cast to, and its exp() is 0
_DTYPES: dict[EightBits, DTypeLike] = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}


class QuantizationError(UserError):
    """A scale that is missing or unusable, or an Attention node that cannot be taken apart."""


def quantize(
    model: ModelProto,
    linears: Sequence[Linear],
    codes: Mapping[str, Codes],
    precision: EightBits,
    weight_scales: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    folder: Path | None = None,
) -> ModelProto:
    """Quantises the given linears of `model` itself, and returns it.

    Args:
        codes: of every tensor that the linears read.
        weight_scales: from a weight [K, N] to the scales [N] of its output channels, above 0; a convolution's comes
            in the same form.
        folder: where the weights lie that were not loaded with the model. One is read at a time; the others can be
            loaded afterwards with `load_weights`.

    Raises QuantizationError when a scale is missing or no positive number.
    """
    nodes = {node.name: node for node in model.graph.node}
    before: dict[str, list[NodeProto]] = {}
    readers: Counter[str] = Counter()
    for linear in linears:
        count = readers[linear.input]
        label = f"{linear.input}.{count}" if count else linear.input
        readers[linear.input] += 1
        added = before.setdefault(linear.node, [])
        activation = _pair(model, added, linear.input, label, _checked(codes, linear.input), precision)
        weight = _quantize_weight(model, added, linear, precision, weight_scales, folder)
        nodes[linear.node].input[:2] = [activation, weight]
        drop_unread(model, {linear.weight})
        if linear.bias_node and linear.bias:
            # Equal biases are stored once, so that others may read this one.
            shape = (1,) * (linear.rank - 1) if precision == "int8" else ()
            bias = values_of(initializers(model)[linear.bias], folder).reshape(*shape, -1)
            name = add_constant(model, f"{linear.name}.bias.{precision}", bias)
            replace_input(nodes[linear.bias_node], linear.bias, name)
            drop_unread(model, {linear.bias})
    rebuild(model, before)
    return model


def quantize_attention(
    model: ModelProto, products: Sequence[Product], codes: Mapping[str, Codes], precision: EightBits
) -> ModelProto:
    """Quantises the two products of the given Attention nodes of `model` itself, and returns it.

    `codes` are those of the queries, keys and values that the nodes read.
    Raises QuantizationError when one is missing or unusable, or a node is of another form than export writes.
    """
    nodes = {node.name: node for node in model.graph.node}
    before = {product.node: _take_apart(model, product, nodes[product.node], codes, precision) for product in products}
    rebuild(model, before, dropped=set(before))
    return model


def _take_apart(
    model: ModelProto, product: Product, node: NodeProto, codes: Mapping[str, Codes], precision: EightBits
) -> list[NodeProto]:
    heads, mask = _heads_and_mask(product, node)
    scale = 1 / math.sqrt(_query_width(model, product) // heads)
    nodes: list[NodeProto] = []

    def add(op_type: str, inputs: list[str], label: str, output: str = "", **attributes: Any) -> str:
        name = f"{product.name}.{label}"
        nodes.append(helper.make_node(op_type, inputs, [output or name], name=name, **attributes))
        return output or name

    def constant(label: str, values: NDArray[Any]) -> str:
        return add_constant(model, f"{product.name}.{label}", values)

    def split(tensor: str, label: str, *order: int) -> str:
        apart = add("Reshape", [tensor, heads_shape], f"{label}.heads")
        ordered = add("Transpose", [apart], label, perm=order)
        return _pair(model, nodes, ordered, ordered, _checked(codes, tensor), precision)

    heads_shape = constant("heads_shape", np.array([0, 0, heads, -1]))
    query, key = split(product.query, "query", 0, 2, 1, 3), split(product.key, "key", 0, 2, 3, 1)
    scores = add("MatMul", [query, key], "product")
    scores = add("Mul", [scores, constant("scale", np.array(scale, np.float32))], "scores")
    if mask:
        scores = add("Where", [mask, scores, constant("lowest", np.array(LOWEST, np.float32))], "masked")
    softmax = add("Softmax", [scores], "softmax", axis=-1)
    probabilities = _pair(model, nodes, softmax, softmax, FORMATS[precision].codes(1.0, None), precision)
    seen = add("MatMul", [probabilities, split(product.value, "value", 0, 2, 1, 3)], "seen")
    seen = add("Transpose", [seen], "tokens", perm=[0, 2, 1, 3])
    add("Reshape", [seen, constant("packed_shape", np.array([0, 0, -1]))], "packed", node.output[0])
    return nodes


def _heads_and_mask(product: Product, node: NodeProto) -> tuple[int, str]:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    heads, key_heads = (attributes.pop(name, 0) for name in ("q_num_heads", "kv_num_heads"))
    others = [name for name, value in attributes.items() if value]
    if not heads or heads != key_heads or others or any(node.input[4:]) or any(node.output[1:]):
        raise QuantizationError(
            f"{product.name}: got {heads} heads of queries, {key_heads} of keys, attributes {others}, inputs "
            f"{list(node.input)}, expected the packed form without a cache; leave attention in high precision"
        )
    return heads, node.input[3] if len(node.input) > 3 else ""


def _query_width(model: ModelProto, product: Product) -> int:
    known = values_by_name(model).get(product.query)
    if known is not None and (sizes := known.type.tensor_type.shape.dim) and sizes[-1].dim_value:
        return int(sizes[-1].dim_value)
    raise QuantizationError(
        f"{product.name}: got no static shape of {product.query!r}, expected one; run shape inference first"
    )


def _pair(
    model: ModelProto, nodes: list[NodeProto], tensor: str, label: str, codes: Codes, precision: EightBits
) -> str:
    """Appends QuantizeLinear and DequantizeLinear to `nodes`; returns the latter's output."""
    constants = [
        add_constant(model, f"{label}.scale", np.array(codes.scale, np.float32)),
        add_constant(model, f"{label}.zero", np.array(codes.zero_point, _DTYPES[precision])),
    ]
    quantised, back = f"{label}.q", f"{label}.dq"
    nodes.append(helper.make_node("QuantizeLinear", [tensor, *constants], [quantised], name=quantised))
    nodes.append(helper.make_node("DequantizeLinear", [quantised, *constants], [back], name=back))
    return back


def _quantize_weight(
    model: ModelProto,
    nodes: list[NodeProto],
    linear: Linear,
    precision: EightBits,
    weight_scales: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    folder: Path | None,
) -> str:
    """Appends DequantizeLinear to `nodes`; returns its output."""
    kind, name = FORMATS[precision], f"{linear.name}.weight"
    values = values_of(initializers(model)[linear.weight], folder)
    last = np.moveaxis(values, linear.axis, -1)  # the output channels
    scales = weight_scales(last.reshape(-1, linear.channels)).astype(np.float32, copy=False)
    codes = kind.round_codes(np.clip(last / scales, -kind.largest, kind.largest))
    codes = np.ascontiguousarray(np.moveaxis(codes, -1, linear.axis))
    constants = [
        add_constant(model, f"{name}.q", codes.astype(_DTYPES[precision], copy=False)),
        add_constant(model, f"{name}.scale", scales),
        add_constant(model, f"{name}.zero", np.zeros(scales.shape, _DTYPES[precision])),
    ]
    nodes.append(helper.make_node("DequantizeLinear", constants, [f"{name}.dq"], name=f"{name}.dq", axis=linear.axis))
    return f"{name}.dq"


def _checked(codes: Mapping[str, Codes], tensor: str) -> Codes:
    found = codes.get(tensor)
    if found is None or not 0 < np.float32(found.scale) < math.inf:
        got = found and found.scale
        raise QuantizationError(
            f"scale of {tensor!r}: got {got}, expected a positive number; calibrate this plan again"
        )
    return found
