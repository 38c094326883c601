"""Pixels become uint8 at the very end.

    before  y = Transpose(Cast<uint8>(x))
    after   y = Cast<uint8>(Transpose(x))

TensorRT has uint8 at the ends of a network alone, and refuses a node that reads it.

Constraints: the node only moves elements, as those of MOVES do, and alone reads the cast.
"""

from __future__ import annotations

import onnx_ir as ir

from videossm.export.optimize.edit import STANDARD, like, only_reader, operator, replace, shape_of

MOVES = ("Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")


def cast_pixels_last(graph: ir.Graph) -> None:
    """Moves every cast to uint8 behind all that moves its elements."""
    for node in list(graph):
        if node.op_type not in MOVES or node.domain not in STANDARD or node.inputs[0] is None:
            continue
        cast, shape = operator(node.inputs[0], "Cast"), shape_of(node.outputs[0])
        if cast is None or cast.attributes["to"].as_int() != ir.DataType.UINT8 or shape is None:
            continue
        source, moved = cast.inputs[0], node.outputs[0]
        if source is None or only_reader(cast.outputs[0]) is not node:
            continue
        early = like(source, f"{moved.name}.moved", shape)
        late = like(moved, f"{moved.name}.pixels", shape)
        new = [
            ir.node(node.op_type, [source, *node.inputs[1:]], node.attributes, outputs=[early], name=node.name),
            ir.node("Cast", [early], {"to": ir.DataType.UINT8}, outputs=[late], name=cast.name),
        ]
        for mine, theirs in zip(new, (node, cast), strict=True):
            mine.metadata_props.update(theirs.metadata_props)
        replace(graph, [node], new, {moved: late})
        graph.remove(cast, safe=True)
