"""The modulation of a norm becomes its weight and bias.

    before  y = Add(Mul(LayerNormalization(x, ones), scale), shift)
    after   y = LayerNormalization(x, Reshape(scale), Reshape(shift))

The operator takes any tensor as its weight and bias, so two passes over all tokens less are made.

Constraints: the norm is over the last axis, and its weight is a constant of ones; scale and shift are one row for all
tokens, [.., 1, D]. They are made [D]: ONNX Runtime 1.23 fuses a norm with the addition before it, and then
refuses others.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from videossm.export.optimize.edit import add_constant, is_constant, like, only_reader, operator, replace, shape_of


def modulate_in_norm(graph: ir.Graph) -> None:
    """Rewrites every such norm."""
    for node in list(graph):
        if node.op_type != "LayerNormalization" or node.domain or not _is_plain(node):
            continue
        scaled = _applied(node.outputs[0], "Mul")
        shifted = _applied(scaled[0].outputs[0], "Add") if scaled else None
        if scaled is None or shifted is None:
            continue
        (multiply, scale), (add, shift) = scaled, shifted
        source, output = node.inputs[0], add.outputs[0]
        flat = [_flat(graph, row, add, node.name or "", label) for row, label in ((scale, "scale"), (shift, "shift"))]
        value = ir.Value(name=f"{output.name}.modulated", shape=output.shape, type=output.type)
        modulated = ir.node(
            "LayerNormalization",
            [source, *flat],
            node.attributes,
            outputs=[value],
            name=f"{node.name}.modulated",
            metadata_props=dict(node.metadata_props),
        )
        graph.insert_before(add, modulated)
        replace(graph, [add, multiply, node], [], {output: value})


def _flat(graph: ir.Graph, row: ir.Value, before: ir.Node, name: str, label: str) -> ir.Value:
    """`row` [.., 1, D] as [D], from a node put before `before`."""
    width = (shape_of(row) or (0,))[-1]
    sizes = add_constant(graph, ir.tensor([-1], dtype=ir.DataType.INT64, name=f"{name}.{label}.shape"))
    value = like(row, f"{name}.{label}", (width,))
    graph.insert_before(before, ir.node("Reshape", [row, sizes], outputs=[value], name=f"{name}.{label}"))
    return value


def _is_plain(node: ir.Node) -> bool:
    """No bias, and a weight of ones over the last axis."""
    weight, axis = node.inputs[1], node.attributes.get("axis")
    if len(node.inputs) > 2 or weight is None or not is_constant(weight) or weight.const_value is None:
        return False
    return (axis is None or axis.as_int() == -1 or _is_last(node, axis.as_int())) and bool(
        (weight.const_value.numpy() == 1).all()
    )


def _is_last(node: ir.Node, axis: int) -> bool:
    source = node.inputs[0]
    return source is not None and axis == len(shape_of(source) or ()) - 1


def _applied(value: ir.Value, op_type: str) -> tuple[ir.Node, ir.Value] | None:
    """The node of that type that alone reads `value`, and the row [.., 1, D] that it applies to it."""
    node = only_reader(value)
    if node is None or operator(node.outputs[0], op_type) is None:
        return None
    rows = [other for other in node.inputs if other is not None and other is not value]
    sizes, width = shape_of(rows[0]) if rows else None, (shape_of(value) or (0,))[-1]
    return (node, rows[0]) if sizes and sizes[-1] == width == math.prod(sizes) else None
