"""Products of one tensor with several weights become one product.

    before  q = Add(MatMul(x, W_q), b_q);  k = Add(MatMul(x, W_k), b_k);  v = Add(MatMul(x, W_v), b_v)
    after   q, k, v = Split(Add(MatMul(x, [W_q W_k W_v]), [b_q b_k b_v]))           along the last axis

One large product is faster than three small ones wherever starting one costs as much as a part of it does. Those within
one module are merged, and the product's module is called after all of them, such as `blocks.0.attention.q+k+v`. What a
precision treats apart stays apart: what it would quantise from what it would not, what is always fp32 from the rest.

Constraints: each product is read by its bias alone; weights [K, N] and biases [N] are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from videossm.calib.graph import SCOPES
from videossm.export.optimize.edit import (
    add_constant,
    is_constant,
    joined,
    like,
    module_of,
    only_reader,
    operator,
    replace,
    shape_of,
)

# Of a module, by its name: something that is equal for modules that a precision treats alike.
Treatment = Callable[[str], object]


@dataclass(frozen=True)
class _Linear:
    module: str
    product: ir.Node
    bias: ir.Node
    weight: ir.Value  # [depth, width]
    offset: ir.Value  # [width]
    depth: int
    width: int


def merge_linears(graph: ir.Graph, treatment: Treatment) -> None:
    """Merges all products of one tensor and one parent module that have the same treatment, as the merged one has."""
    groups: dict[tuple[ir.Value, str, object], list[_Linear]] = {}
    for node in graph:
        linear = _linear(node)
        if linear is not None and linear.module and (source := node.inputs[0]) is not None:
            parent = linear.module.rpartition(".")[0]
            groups.setdefault((source, parent, treatment(linear.module)), []).append(linear)
    for (source, parent, treated), linears in groups.items():
        module = f"{parent}.{'+'.join(linear.module.rpartition('.')[2] for linear in linears)}"
        if len(linears) > 1 and treatment(module) == treated:
            _merge(graph, source, module, linears)


def _linear(node: ir.Node) -> _Linear | None:
    if node.op_type != "MatMul" or node.domain or not is_constant(node.inputs[1]):
        return None
    weight, bias = node.inputs[1], only_reader(node.outputs[0])
    if weight is None or bias is None or operator(bias.outputs[0], "Add") is None:
        return None
    sizes = shape_of(weight)
    if sizes is None or len(sizes) != 2:
        return None
    for value in bias.inputs:
        if value is not None and is_constant(value) and shape_of(value) == sizes[1:]:
            return _Linear(module_of(node), node, bias, weight, value, *sizes)
    return None


def _merge(graph: ir.Graph, source: ir.Value, module: str, linears: Sequence[_Linear]) -> None:
    outputs = [linear.bias.outputs[0] for linear in linears]
    widths = [linear.width for linear in linears]
    weight = joined(
        graph, f"{module}.weight", [linear.weight for linear in linears], (linears[0].depth, sum(widths)), 1
    )
    offset = joined(graph, f"{module}.bias", [linear.offset for linear in linears], (sum(widths),), 0)
    sizes = add_constant(graph, ir.tensor(widths, dtype=ir.DataType.INT64, name=f"{module}.widths"))
    tokens = (shape_of(outputs[0]) or ())[:-1]
    product, added = (like(outputs[0], f"{module}.{label}", (*tokens, sum(widths))) for label in ("product", "output"))
    parts = [like(value, f"{value.name}.part", (*tokens, width)) for value, width in zip(outputs, widths, strict=True)]
    nodes = [
        ir.node("MatMul", [source, weight], outputs=[product], name=f"{module}.product"),
        ir.node("Add", [product, offset], outputs=[added], name=f"{module}.output"),
        ir.node("Split", [added, sizes], {"axis": -1}, outputs=parts, name=f"{module}.split"),
    ]
    for node in nodes:
        node.metadata_props[SCOPES] = str(["", module, node.name])
    old = [node for linear in linears for node in (linear.product, linear.bias)]
    replace(graph, old, nodes, dict(zip(outputs, parts, strict=True)))
