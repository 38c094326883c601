"""Biases of three-dimensional products become rows.

    before  y = Add(MatMul(x, W), b)          x [B, T, K], W [K, N], b [N]
    after   y = Add(MatMul(x, W), b)          b [1, 1, N]

ONNX Runtime makes a Gemm of a product and a bias [N], with a Reshape before it and one after: in a `shapes` step 134
Reshapes for nothing. A bias that is a row it leaves alone, and its product with a constant W is one call all the same.

Constraints: W and b are constants.
"""

from __future__ import annotations

import onnx_ir as ir

from videossm.export.optimize.edit import is_constant, joined, only_reader, operator, shape_of

TOKEN_DIMENSIONS = 3  # [B, T, K]


def make_biases_rows(graph: ir.Graph) -> None:
    """Gives every such product a bias of its own shape; equal ones stay one constant."""
    rows: dict[ir.Value, ir.Value] = {}
    for node in graph:
        if node.op_type != "MatMul" or node.domain or not is_constant(node.inputs[1]):
            continue
        bias = only_reader(node.outputs[0])
        if (
            bias is None
            or operator(bias.outputs[0], "Add") is None
            or len(shape_of(node.outputs[0]) or ()) != TOKEN_DIMENSIONS
        ):
            continue
        for index, value in enumerate(bias.inputs):
            if value is not None and is_constant(value) and len(shape_of(value) or ()) == 1:
                if value not in rows:
                    rows[value] = joined(graph, f"{value.name}.row", [value], (1, 1, *(shape_of(value) or ())), 2)
                bias.replace_input_with(index, rows[value])
