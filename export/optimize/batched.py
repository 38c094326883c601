"""What every layer computes of a small product for the plan alone, not for later layers, is done for all at once.

    before  present.i.decay, present.i.beta = f(MatMul(x_i, W_i))                   for every layer i
    after   .. = Split(f(Concat(MatMul(x_0, W_0), .., MatMul(x_n, W_n))))           along axis 0

The gates of a memory are such: two columns a head, and eight nodes a layer to make them of it.

Constraints: f is made of OPERATORS, of LEAST_NODES of them or more, for which one copy of the products pays; all its
results are outputs of the graph; all layers agree in operators and shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from videossm.export.optimize.edit import add_constant, is_constant, joined, like, replace, shape_of

# Element by element, or along the last axis.
OPERATORS = {
    *("Abs", "Add", "Div", "Exp", "Greater", "Log", "Mul", "Neg", "Relu", "Sigmoid", "Softplus", "Split", "Sub"),
    "Where",
}
LEAST_NODES = 4
MOST_VALUES = 100  # of a chain; gates have a dozen


@dataclass(frozen=True)
class _Chain:
    """All that is computed of `start`, and of nothing else."""

    start: ir.Value
    nodes: tuple[ir.Node, ...]

    def signature(self) -> tuple[object, ...]:
        """Equal for chains that can be batched."""
        values = [self.start, *(output for node in self.nodes for output in node.outputs)]
        links = tuple(
            (
                node.op_type,
                tuple((name, str(attribute.value)) for name, attribute in node.attributes.items()),
                tuple(values.index(x) if x in values else _described(x) for x in node.inputs),
                tuple(output.is_graph_output() for output in node.outputs),
            )
            for node in self.nodes
        )
        return (shape_of(self.start), links)


def batch_outputs(graph: ir.Graph) -> None:
    """Batches every group of two chains or more."""
    groups: dict[tuple[object, ...], list[_Chain]] = {}
    for node in graph:
        if node.op_type == "MatMul" and not node.domain and is_constant(node.inputs[1]):
            chain = _chain(graph, node.outputs[0])
            if chain is not None:
                groups.setdefault(chain.signature(), []).append(chain)
    for chains in groups.values():
        if len(chains) > 1:
            _batch(graph, chains)


def _chain(graph: ir.Graph, start: ir.Value) -> _Chain | None:
    """None where what is computed of `start` meets other values, or goes on inside the graph for good."""
    values, nodes = {start}, []
    for node in _following(start):
        known = all(x in values or is_constant(x) for x in node.inputs)
        if node.op_type not in OPERATORS or node.domain or not known:
            return None
        nodes.append(node)
        values.update(node.outputs)
    ends = [value for value in values if not value.uses()]
    if len(nodes) < LEAST_NODES or start.is_graph_output() or not all(value.is_graph_output() for value in ends):
        return None
    return _Chain(start, tuple(nodes))


def _following(start: ir.Value) -> list[ir.Node]:
    """All nodes behind `start`, each after those that it reads from."""
    found: dict[ir.Node, None] = {}
    waiting = [start]
    for value in waiting:
        for use in value.uses():
            found.pop(use.node, None)  # behind what it reads last
            found[use.node] = None
            waiting.extend(use.node.outputs)
            if len(waiting) > MOST_VALUES:  # what is found so far then leads on, so it is no chain
                return list(found)
    return list(found)


def _batch(graph: ir.Graph, chains: Sequence[_Chain]) -> None:
    rows, *rest = shape_of(chains[0].start) or (1,)
    name = f"{chains[0].start.name}.batched"
    batched = {chains[0].start: like(chains[0].start, name, (rows * len(chains), *rest))}
    new = [
        ir.node("Concat", [chain.start for chain in chains], {"axis": 0}, outputs=[batched[chains[0].start]], name=name)
    ]
    values: dict[ir.Value, ir.Value] = {}
    for links in zip(*(chain.nodes for chain in chains), strict=True):
        first = links[0]
        rank = len(shape_of(first.outputs[0]) or ())
        inputs = [
            batched[x] if x in batched else _constant(graph, [link.inputs[i] for link in links], rows, rank)
            for i, x in enumerate(first.inputs)
        ]
        outputs = [like(x, f"{x.name}.batched", (rows * len(chains), *(shape_of(x) or ())[1:])) for x in first.outputs]
        batched.update(zip(first.outputs, outputs, strict=True))
        new.append(ir.node(first.op_type, inputs, first.attributes, outputs=outputs, name=f"{first.name}.batched"))
        for i, output in enumerate(first.outputs):
            if output.is_graph_output():
                ends = [link.outputs[i] for link in links]
                parts = [like(end, f"{end.name}.part", shape_of(end) or ()) for end in ends]
                sizes = ir.tensor([rows] * len(chains), dtype=ir.DataType.INT64, name=f"{output.name}.rows")
                split = [outputs[i], add_constant(graph, sizes)]
                new.append(ir.node("Split", split, {"axis": 0}, outputs=parts, name=f"{output.name}.split"))
                values.update(zip(ends, parts, strict=True))
    last_first = [node for chain in reversed(chains) for node in chain.nodes]  # before it, all products are there
    replace(graph, last_first, new, values)


def _described(constant: ir.Value | None) -> tuple[object, ...]:
    """What must agree of a constant in all layers: its shape, and its values where there is one for all of them."""
    if constant is None or constant.const_value is None:
        return ()
    return (shape_of(constant), constant.const_value.numpy().tobytes() if _is_common(constant) else None)


def _is_common(constant: ir.Value) -> bool:
    """A single number, or sizes."""
    return shape_of(constant) == () or constant.dtype == ir.DataType.INT64


def _constant(graph: ir.Graph, constants: Sequence[ir.Value | None], rows: int, rank: int) -> ir.Value:
    """The one that all layers have, or theirs as [layers * rows, ..], of `rank` dimensions."""
    own = [constant for constant in constants if constant is not None]
    if _is_common(own[0]):
        return own[0]
    sizes = shape_of(own[0]) or ()
    repeated = [constant for constant in own for _ in range(rows)]
    shape = (len(repeated), *(1,) * (rank - 1 - len(sizes)), *sizes[-(rank - 1) :])
    return joined(graph, f"{own[0].name}.batched", repeated, shape, 0)
