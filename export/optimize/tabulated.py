"""What depends on the noise level alone is looked up: the levels of a plan are known.

    before  y_i = f_i(sigma)                                                        y_i [1, R_i, D], sigma [1]
    after   y_0, .., y_n = Split(Gather(table, ArgMin(Abs(levels - sigma))))        table [levels, R_0 + .. + R_n, D]

The time embedding and the blocks' modulation are such: products with one row, which take as long as their weights take
to read. In a `shapes` step they were 50 of 440 nodes and 4% of the time.

Between two levels the table gives the nearer one. A plan's passes ask for none but its levels.

Constraints: no input but `sigma` has a part in y_i; what is smaller than a row, as the sampler's arithmetic, stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from videossm.export.optimize.edit import SCOPES, add_constant, is_constant, like, replace, shape_of
from videossm.runtime.backends.session import session_options

IR_VERSION = 10  # of ONNX's file format, in which this part of the graph is handed to ONNX Runtime
MODULE = "levels"  # of the look-up, for passes that ask where a node belongs


def tabulate(graph: ir.Graph, name: str, levels: Sequence[float]) -> None:
    """Tabulates what depends on the input `name` [1] alone, for each of its `levels`, of which there may be none."""
    sigma = next((value for value in graph.inputs if value.name == name), None)
    if sigma is None or not levels:
        return
    nodes = _depending(graph, sigma)
    ends = [value for node in nodes for value in node.outputs if _is_end(value, nodes)]
    widths = {sizes[-1] for value in ends if (sizes := shape_of(value))}
    if not ends or len(widths) > 1:
        return
    rows = [sizes[1] for value in ends if (sizes := shape_of(value))]
    table = add_constant(graph, ir.tensor(_evaluated(graph, sigma, ends, levels), name=f"{MODULE}.table"))
    known = add_constant(graph, ir.tensor(np.array([levels], np.float32), name=f"{MODULE}.levels"))
    counts = add_constant(graph, ir.tensor(np.array(rows, np.int64), name=f"{MODULE}.rows"))
    values = [like(sigma, f"{MODULE}.{label}", (1, len(levels))) for label in ("difference", "distance")]
    nearest = ir.Value(name=f"{MODULE}.nearest", shape=ir.Shape((1,)), type=ir.TensorType(ir.DataType.INT64))
    row = like(sigma, f"{MODULE}.row", (1, sum(rows), widths.pop()))
    parts = [like(value, f"{value.name}.part", shape_of(value) or ()) for value in ends]
    new = [
        ir.node("Sub", [known, sigma], outputs=[values[0]]),
        ir.node("Abs", [values[0]], outputs=[values[1]]),
        ir.node("ArgMin", [values[1]], {"axis": 1, "keepdims": 0}, outputs=[nearest]),  # TensorRT wants two dimensions
        ir.node("Gather", [table, nearest], {"axis": 0}, outputs=[row]),
        ir.node("Split", [row, counts], {"axis": 1}, outputs=parts),
    ]
    for node in new:
        node.name = node.outputs[0].name
        node.metadata_props[SCOPES] = str(["", MODULE, node.name])
    graph.insert_before(graph[0], new)
    replace(graph, [], [], dict(zip(ends, parts, strict=True)))


def _depending(graph: ir.Graph, sigma: ir.Value) -> list[ir.Node]:
    """The nodes that read `sigma` or what comes of it, and nothing else but constants."""
    values, nodes = {sigma}, []
    for node in graph:
        read = [value for value in node.inputs if value is not None and not is_constant(value)]
        if read and all(value in values for value in read):
            nodes.append(node)
            values.update(node.outputs)
    return nodes


def _is_end(value: ir.Value, nodes: Sequence[ir.Node]) -> bool:
    """Does a node read it that depends on more, and is it a row or several, [1, R, D]?"""
    sizes = shape_of(value) or ()
    return len(sizes) == 3 and sizes[0] == 1 and sizes[-1] > 1 and any(use.node not in nodes for use in value.uses())


def _evaluated(
    graph: ir.Graph, sigma: ir.Value, ends: Sequence[ir.Value], levels: Sequence[float]
) -> NDArray[np.float32]:
    """The ends, one after the other along axis 1, for every level: [levels, R, D]."""
    model = ir.Model(ir.convenience.extract(graph, [sigma], ends), ir_version=IR_VERSION)
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, session_options("fp32", 1), providers=["CPUExecutionProvider"])
    feeds = ({sigma.name: np.array([level], np.float32)} for level in levels)
    return np.concatenate([np.concatenate(session.run(None, feed), 1) for feed in feeds])
