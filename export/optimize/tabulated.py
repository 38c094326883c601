"""What depends on a scalar of the passes alone, as the noise level, is looked up: its values in a plan are known.

    before  y_i = f_i(scalar)                                                                  scalar [1]
    after   y_0, .., y_n = Split(Reshape(Gather(table, ArgMin(Abs(levels - scalar)))))           table [levels, N]

A row [1, .., 1, D] becomes [D] where what reads it broadcasts it; all else gets its shape back.

The time embedding and the blocks' modulation are such: products with one row, which take as long as their weights take
to read. In a `shapes` step they were 41 of 385 nodes, and 1% of the time on one thread.

Between two levels the table gives the nearer one. A plan's passes ask for none but its levels.

Constraints: no input but `scalar` has a part in y_i; what is smaller than a row, as the sampler's arithmetic, stays. No
more than MOST_VALUES a level, or nothing is tabulated: a graph that spreads its time embedding over all tokens first
would have them all in the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from videossm.calib.graph import SCOPES
from videossm.export.optimize.edit import add_constant, is_constant, like, replace, shape_of
from videossm.runtime.backends.session import session_options

IR_VERSION = 10  # of ONNX's file format, in which this part of the graph is handed to ONNX Runtime
ELEMENTWISE = ("Add", "Mul")
MOST_VALUES = 1 << 22  # 16 MB a level; Wan2.1's largest model has 1.2 million
MODULE = "levels"  # of the look-up, for passes that ask where a node belongs


def tabulate(graph: ir.Graph, name: str, levels: Sequence[float]) -> None:
    """Tabulates what depends on the input `name` [1] alone, for each of its `levels`, of which there may be none."""
    module = f"{MODULE}.{name}"
    scalar = next((value for value in graph.inputs if value.name == name), None)
    if scalar is None or not levels:
        return
    nodes = _depending(graph, scalar)
    ends = [value for node in nodes for value in node.outputs if _is_end(value, nodes)]
    if not ends:
        return
    widths = [math.prod(shape_of(value) or ()) for value in ends]
    if sum(widths) > MOST_VALUES:
        return
    table = add_constant(graph, ir.tensor(_evaluated(graph, scalar, ends, levels), name=f"{module}.table"))
    known = add_constant(graph, ir.tensor(np.array([levels], np.float32), name=f"{module}.levels"))
    first = add_constant(graph, ir.tensor(np.array([-1], np.int64), name=f"{module}.flat"))
    sizes = add_constant(graph, ir.tensor(np.array(widths, np.int64), name=f"{module}.widths"))
    values = [like(scalar, f"{module}.{label}", (1, len(levels))) for label in ("difference", "distance")]
    nearest = ir.Value(name=f"{module}.nearest", shape=ir.Shape((1,)), type=ir.TensorType(ir.DataType.INT64))
    row, flat = (
        like(scalar, f"{module}.{label}", shape)
        for label, shape in (("row", (1, sum(widths))), ("flat_row", (sum(widths),)))
    )
    parts = [like(value, f"{value.name}.part", (width,)) for value, width in zip(ends, widths, strict=True)]
    new = [
        ir.node("Sub", [known, scalar], outputs=[values[0]]),
        ir.node("Abs", [values[0]], outputs=[values[1]]),
        ir.node("ArgMin", [values[1]], {"axis": 1, "keepdims": 0}, outputs=[nearest]),  # TensorRT wants two dimensions
        ir.node("Gather", [table, nearest], {"axis": 0}, outputs=[row]),
        ir.node("Reshape", [row, first], outputs=[flat]),
        ir.node("Split", [flat, sizes], {"axis": 0}, outputs=parts),
    ]
    replaced = dict(zip(ends, parts, strict=True))
    for value, part in replaced.items():
        shape = shape_of(value) or ()
        if len(shape) > 1 and not _broadcasts(value):
            own = add_constant(graph, ir.tensor(np.array(shape, np.int64), name=f"{value.name}.shape"))
            replaced[value] = like(value, f"{value.name}.shaped", shape)
            new.append(ir.node("Reshape", [part, own], outputs=[replaced[value]]))
    for node in new:
        node.name = node.outputs[0].name
        node.metadata_props[SCOPES] = str(["", module, node.name])
    graph.insert_before(graph[0], new)
    replace(graph, [], [], replaced)


def _depending(graph: ir.Graph, scalar: ir.Value) -> list[ir.Node]:
    """The nodes that read `scalar` or what comes of it, and nothing else but constants."""
    values, nodes = {scalar}, []
    for node in graph:
        read = [value for value in node.inputs if value is not None and not is_constant(value)]
        if read and all(value in values for value in read):
            nodes.append(node)
            values.update(node.outputs)
    return nodes


def _is_end(value: ir.Value, nodes: Sequence[ir.Node]) -> bool:
    """Does a node read it that depends on more, and is it a row, or several?"""
    sizes = shape_of(value) or (1,)
    leaves = value.is_graph_output() or any(use.node not in nodes for use in value.uses())
    return sizes[-1] > 1 and leaves and value.dtype == ir.DataType.FLOAT


def _broadcasts(value: ir.Value) -> bool:
    """Is [1, .., 1, D] read in places alone where [D] means the same?"""
    sizes = shape_of(value) or ()
    if math.prod(sizes) != sizes[-1] or value.is_graph_output():
        return False
    for use in value.uses():
        others = [shape_of(other) or () for other in use.node.inputs if other is not None and other is not value]
        if use.node.op_type not in ELEMENTWISE or max(map(len, others), default=0) < len(sizes):
            return False
    return True


def _evaluated(
    graph: ir.Graph, scalar: ir.Value, ends: Sequence[ir.Value], levels: Sequence[float]
) -> NDArray[np.float32]:
    """The values of all ends, one after the other, for every level: [levels, N]."""
    model = ir.Model(ir.convenience.extract(graph, [scalar], ends), ir_version=IR_VERSION)
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, session_options("fp32", 1), providers=["CPUExecutionProvider"])
    feeds = ({scalar.name: np.array([level], np.float32)} for level in levels)
    return np.stack([np.concatenate([end.ravel() for end in session.run(None, feed)]) for feed in feeds])
