"""What a graph quantised to fp8 computes, in fp32 operators: the same values, for little more than fp32's time.

    before  y = DequantizeLinear(QuantizeLinear(x, scale, zero), scale, zero)          zero in E4M3
    after   c = Clip(x / scale, -448, 448)
            w = Max(|c| * (2^20 - 1), 1.5 * 2^14)
            y = ((c + w) - w) * scale

Why: on a CPU, ONNX Runtime 1.31 rounds to fp8 one value after the other, which is half the time of a `shapes` pass.
Weights stay as they are: with session.disable_quant_qdq=1 it dequantises them once, when it loads the graph.

How: E4M3 has 4 significant bits, and below 2^-6 steps of 2^-9; fp32 has 24 significant bits. So numbers about 2^20
times as large as c lie in fp32 as far apart as E4M3's codes do at c, and adding w rounds c to one of them, to nearest
even, as E4M3 does. Where c is small, w stays where fp32's numbers are 2^-9 apart. The factor is a little less than
2^20 because c + w must not reach the next power of two.

The last factor is a vector, the scale as often as x is wide: ONNX Runtime moves a scalar behind a product of two
activations, where it rounds otherwise. Of 36 passes with quantised attention one came out with other bits.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from videossm.calib.graph import add_constant, drop_unread, inferred_values, initializers, replace_input
from videossm.calib.observers import E4M3_LEAST_EXPONENT, E4M3_MANTISSA_BITS, FORMATS

LOST_BITS = 23 - E4M3_MANTISSA_BITS  # of an fp32 mantissa
FACTOR, LEAST = 2.0**LOST_BITS - 1, 1.5 * 2.0 ** (LOST_BITS + E4M3_LEAST_EXPONENT)


def emulate_fp8(model: ModelProto) -> ModelProto:
    """Replaces the activations' pairs in `model` itself, whose weights are loaded, and returns it.

    Pairs of one tensor with one scale become one.
    """
    tensors, values = initializers(model), inferred_values(model)
    limits = _limits(model)
    rounded: dict[tuple[str, float], str] = {}  # (tensor, scale) -> the rounded tensor
    renamed: dict[str, str] = {}  # an output of one of the pair's nodes -> the rounded tensor
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and tensors[node.input[2]].data_type == TensorProto.FLOAT8E4M3FN:
            tensor, scale, _ = node.input
            key = tensor, float(numpy_helper.to_array(tensors[scale]))
            if key not in rounded:
                rounded[key] = f"{node.output[0]}.rounded"
                width = values[tensor].type.tensor_type.shape.dim[-1].dim_value or 1
                factor = np.full(width, numpy_helper.to_array(tensors[scale]))
                add_constant(model, f"{rounded[key]}.factor", factor)
                nodes += _rounding(tensor, scale, rounded[key], limits)
            renamed[node.output[0]] = rounded[key]
        elif node.op_type == "DequantizeLinear" and node.input[0] in renamed:
            renamed[node.output[0]] = renamed[node.input[0]]
        else:
            for name in renamed.keys() & set(node.input):
                replace_input(node, name, renamed[name])
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unread(model, [tensor.name for tensor in model.graph.initializer])
    return model


def _limits(model: ModelProto) -> dict[str, str]:
    """The constants that all pairs share, by what they are."""
    largest = FORMATS["fp8"].largest
    values = {"low": -largest, "high": largest, "factor": FACTOR, "least": LEAST}
    return {name: add_constant(model, f"fp8.{name}", np.array(value, np.float32)) for name, value in values.items()}


def _rounding(tensor: str, scale: str, output: str, limits: dict[str, str]) -> list[NodeProto]:
    nodes: list[NodeProto] = []

    def add(op_type: str, inputs: list[str], label: str) -> str:
        name = f"{output}.{label}" if label else output
        nodes.append(helper.make_node(op_type, inputs, [name], name=name))
        return name

    codes = add("Clip", [add("Div", [tensor, scale], "scaled"), limits["low"], limits["high"]], "clipped")
    large = add("Mul", [add("Abs", [codes], "magnitude"), limits["factor"]], "large")
    large = add("Max", [large, limits["least"]], "bounded")
    whole = add("Sub", [add("Add", [codes, large], "sum"), large], "code")
    add("Mul", [whole, f"{output}.factor"], "")
    return nodes
