"""Passes over a traced graph that leave what it computes and take fewer, larger nodes for it, on every backend.

They run before the graph is verified and before its precision is changed, on standard operators alone. Each says in its
docstring what it looks for and what takes its place. A graph in which a pass finds nothing stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from videossm.calib.half import in_fp32
from videossm.calib.linears import reasons_to_keep
from videossm.export.optimize.batched import batch_outputs
from videossm.export.optimize.late_pixels import cast_pixels_last
from videossm.export.optimize.merged_linears import merge_linears
from videossm.export.optimize.modulated_norm import modulate_in_norm
from videossm.export.optimize.row_bias import make_biases_rows
from videossm.export.optimize.stacked import stack_constants
from videossm.export.optimize.tabulated import tabulate
from videossm.models.family import Precision

__all__ = ["optimize"]


def optimize(model: ir.Model, levels: Mapping[str, Sequence[float]], precision: Precision | None) -> None:
    """Rewrites `model` in place. Weights of layers are neither read nor copied before it is saved.

    `levels`: all values that an input [1] can have, for those inputs of which they are known. `precision`: what a lower
    one may touch; None leaves products apart, as for engines that no pass runs, where merging is not worth its memory.
    Raises UserError for one of its patterns that is no regular expression.
    """
    if precision is not None:
        reason, fp32 = reasons_to_keep(precision.layers), in_fp32(precision.fp32_modules)
        merge_linears(model.graph, lambda module: (reason(module) is None, fp32(module)))
    batch_outputs(model.graph)
    make_biases_rows(model.graph)
    stack_constants(model.graph)
    modulate_in_norm(model.graph)
    cast_pixels_last(model.graph)
    for name, known in levels.items():
        tabulate(model.graph, name, known)
    RemoveUnusedNodesPass()(model)
