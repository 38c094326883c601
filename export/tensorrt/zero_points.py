"""Zero points out of an int8 graph, for TensorRT, which takes symmetric pairs alone.

    before  q = QuantizeLinear(x, s, z);  y = Add(MatMul(DequantizeLinear(q, s, z), W), b)
    after   q = QuantizeLinear(Add(x, s z), s, 0);  y = Add(MatMul(DequantizeLinear(q, s, 0), W), b - s z sum(W))

A product without a bias gets one.

The codes are the same, so what ONNX Runtime was found to compute holds for the engine too. The addition is one more
operation on an activation that is quantised next, with which TensorRT fuses it.

Constraints: x and b are fp32; W is the DequantizeLinear of a constant in 8 bits [K, N] with N scales; nothing but such
products reads the pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from videossm.calib.graph import (
    add_constant,
    add_value_info,
    drop_unread,
    initializers,
    load_graph,
    readers,
    rebuild,
    replace_input,
    values_of,
)
from videossm.calib.plans import save_graph


def without_zero_points(graph: Path, folder: Path) -> Path:
    """`graph`, or what takes its place, in `folder`, where it has zero points."""
    if not _shifted(onnx.load(graph, load_external_data=False)):
        return graph
    model = load_graph(graph)
    remove_zero_points(model)
    save_graph(model, folder / graph.name)
    return folder / graph.name


def remove_zero_points(model: ModelProto) -> None:
    """Rewrites every pair with a zero point in `model`, whose weights are loaded."""
    reading, constants = readers(model), initializers(model)
    made = {name: node for node in model.graph.node for name in node.output}
    before: dict[str, list[NodeProto]] = {}
    after: dict[str, list[NodeProto]] = {}
    for node in _shifted(model):
        tensor, scale, zero = node.input
        zeros = values_of(constants[zero], None)
        shift = values_of(constants[scale], None) * zeros.astype(np.float32)
        name = f"{node.output[0]}.shift"
        before[node.name] = [
            helper.make_node("Add", [tensor, add_constant(model, name, shift)], [f"{name}ed"], name=f"{name}ed")
        ]
        none = add_constant(model, f"{node.output[0]}.none", np.zeros_like(zeros))
        node.input[:] = [f"{name}ed", scale, none]
        for back in reading[node.output[0]]:
            replace_input(back, zero, none)
            for product in reading[back.output[0]]:
                values, columns, _ = (values_of(constants[value], None) for value in made[product.input[1]].input)
                shifts = -shift * values.astype(np.float32).sum(0) * columns
                add = _bias_of(product, reading[product.output[0]], constants)
                if add is None:
                    after[product.name] = [_new_bias(model, product, shifts)]
                else:
                    bias = next(value for value in add.input if value in constants)
                    added = add_constant(model, f"{bias}.shifted", values_of(constants[bias], None) + shifts)
                    replace_input(add, bias, added)
    rebuild(model, before)
    nodes = [added for node in model.graph.node for added in (node, *after.get(node.name, ()))]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unread(model, [tensor.name for tensor in model.graph.initializer])


def _bias_of(product: NodeProto, reading: list[NodeProto], constants: Mapping[str, TensorProto]) -> NodeProto | None:
    """The Add of a constant that alone reads the product."""
    if len(reading) == 1 and reading[0].op_type == "Add" and any(value in constants for value in reading[0].input):
        return reading[0]
    return None


def _new_bias(model: ModelProto, product: NodeProto, values: NDArray[np.float32]) -> NodeProto:
    """An Add whose output takes the place of the product's."""
    name = product.output[0]
    product.output[0] = f"{name}.shifted"
    add_value_info(model, name, product.output[0])
    bias = add_constant(model, f"{name}.bias", values.reshape(1, 1, -1))  # [N] ONNX Runtime does not take in int8
    return helper.make_node("Add", [product.output[0], bias], [name], name=f"{name}.bias")


def _shifted(model: ModelProto) -> list[NodeProto]:
    constants = initializers(model)
    zeros = {
        name for name, tensor in constants.items() if tensor.data_type == onnx.TensorProto.INT8 and not tensor.dims
    }
    return [
        node
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
        and node.input[2] in zeros
        and values_of(constants[node.input[2]], None) != 0
    ]
