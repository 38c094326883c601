"""States that a pass changes a part of, as TensorRT writes them in place.

    before  y = ScatterND(x, where, part)
    after   y = TensorScatter(x, part, start)

x and y are one state of kind `chunk`, in one buffer. TensorRT makes a copy of all of x for the first; for the second it
has a cache update, which writes the part alone, and which it knows to be in place.

Constraints: x is an input of the engine and y an output, [B, heads, places, channels]; `where` is a constant that
names, in every batch and head, the same places one after the other. Whatever else changes a state in place is refused:
of other operators TensorRT does not say in which order they read and write. The graph becomes one of opset 24 where it
was older; its other operators mean the same there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from videossm.calib.graph import add_constant, drop_unread, initializers, load_graph, values_of
from videossm.calib.plans import save_graph
from videossm.runtime.errors import PlanError

OPSET = 24  # since which TensorScatter is a standard operator


def with_cache_updates(in_place: Mapping[str, str], graph: Path, folder: Path) -> Path:
    """`graph`, or what takes its place, in `folder`, where it changes states in place.

    `in_place`: outputs, and the inputs whose buffers they take. Raises PlanError.
    """
    if not in_place:
        return graph
    model = load_graph(graph)
    use_cache_updates(model, in_place, graph.name)
    save_graph(model, folder / graph.name)
    return folder / graph.name


def use_cache_updates(model: ModelProto, in_place: Mapping[str, str], where: str) -> None:
    """Rewrites `model`, whose weights are loaded. `where`: what errors name."""
    constants = initializers(model)
    made = {name: node for node in model.graph.node for name in node.output}
    places = []
    for output, given in in_place.items():
        node = made.get(output)
        if node is not None and node.op_type == "TensorScatter" and node.input[0] == given:
            continue
        scatters = node is not None and node.op_type == "ScatterND" and node.input[0] == given
        where_to = constants.get(node.input[1]) if node is not None and scatters else None
        start = _start(values_of(where_to, None)) if where_to is not None else None
        if node is None or start is None:
            what = "no node" if node is None else node.op_type
            raise PlanError(
                f"{where}: {output}: got {what} for a state that a pass changes, expected ScatterND of {given} at "
                "constant places one after the other; change the module, or run the plan by ONNX Runtime"
            )
        places.append(node.input[1])
        at = add_constant(model, f"{output}.start", start)
        node.op_type, node.input[:] = "TensorScatter", [given, node.input[2], at]
        node.attribute.append(helper.make_attribute("axis", -2))
    drop_unread(model, places)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, OPSET)


def _start(where: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The first place of `where` [B, heads, T, 3], once for each of B; None where it does not name T places that follow
    one another, the same in each head.
    """
    if where.ndim != 4 or where.shape[3] != 3:
        return None
    batch, heads, places, _ = where.shape
    start = where[0, 0, 0, 2]
    sides = np.meshgrid(np.arange(batch), np.arange(heads), np.arange(start, start + places), indexing="ij")
    return np.full(batch, start) if np.array_equal(where, np.stack(sides, -1)) else None
