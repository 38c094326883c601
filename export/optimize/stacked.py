"""The same arithmetic on one tensor, with another constant in every layer, is done for all layers at once.

    before  y_i = Sigmoid(Add(Mul(x, a_i), b_i))                    for every layer i; x, y_i [1, ..]
    after   y_0, .., y_n = Split(Sigmoid(Add(Mul(x, [a_0; ..; a_n]), [b_0; ..; b_n])))           along axis 0

Of a step's small nodes, what depends on the noise level or on the share of evicted frames alone is of this kind: the
blocks' modulation, the routers of their memories.

Constraints: chains of Add and Mul with a constant and of UNARY; all of a group agree in operators and shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from videossm.export.optimize.edit import add_constant, is_constant, joined, like, only_reader, replace, shape_of

BINARY = ("Add", "Mul")
UNARY = ("Sigmoid",)


def stack_constants(graph: ir.Graph) -> None:
    """Stacks every group of two or more."""
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        groups: dict[tuple[str, tuple[int, ...]], list[ir.Node]] = {}
        for use in value.uses():
            sizes = _stackable(use.node)
            if sizes is not None and use.node.op_type in BINARY:  # with a constant, or all of them are the same
                groups.setdefault((use.node.op_type, sizes), []).append(use.node)
        for group in groups.values():
            if len(group) > 1:
                _stack(graph, value, group)


def _stackable(node: ir.Node) -> tuple[int, ...] | None:
    """The shape [1, ..] of what a link of a chain computes; None if it is none."""
    sizes = shape_of(node.outputs[0])
    if node.domain or not sizes or sizes[0] != 1 or node.outputs[0].is_graph_output():
        return None
    if node.op_type in UNARY:
        return sizes
    constants = [value for value in node.inputs if is_constant(value)]
    if node.op_type not in BINARY or len(constants) != 1 or constants[0] is None:
        return None
    own = shape_of(constants[0])
    return sizes if own is not None and (1,) * (len(sizes) - len(own)) + own == sizes else None


def _stack(graph: ir.Graph, source: ir.Value, heads: Sequence[ir.Node]) -> None:
    old, links, following = [], list(heads), source
    new: list[ir.Node] = []
    sizes = shape_of(heads[0].outputs[0]) or ()
    while True:
        first, name = links[0], f"{links[0].outputs[0].name}.stacked"
        inputs: list[ir.Value | None] = [following]
        if first.op_type in BINARY:
            constants = [value for link in links for value in link.inputs if value is not None and is_constant(value)]
            inputs.append(joined(graph, f"{name}.constant", constants, (len(links), *sizes[1:]), 0))
        following = like(first.outputs[0], name, (len(links), *sizes[1:]))
        new.append(ir.node(first.op_type, inputs, outputs=[following], name=name))
        old += links
        readers = [only_reader(link.outputs[0]) for link in links]
        continued = [node for node in readers if node is not None and _stackable(node) == sizes]
        if len(continued) < len(links) or len({node.op_type for node in continued}) > 1:
            break
        links = continued
    outputs = [link.outputs[0] for link in links]
    parts = [like(value, f"{value.name}.part", sizes) for value in outputs]
    name = f"{following.name}.split"
    counts = add_constant(graph, ir.tensor([1] * len(links), dtype=ir.DataType.INT64, name=f"{name}.sizes"))
    new.append(ir.node("Split", [following, counts], {"axis": 0}, outputs=parts, name=name))
    replace(graph, old, new, dict(zip(outputs, parts, strict=True)))
