"""The project's own ONNX operators, domain `videossm` version 1: one node a scan, as export produces it.

A lowering (`videossm.export.lowering`) turns every such node into what a backend runs. Importing this module registers
the schemas, so that `onnx.checker` and shape inference accept an exported graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx import defs, shape_inference
from onnxscript.values import Opset

from videossm.models.scans import operators  # noqa: F401  (registers them with torch)

DOMAIN = "videossm"
VERSION = 1
GATED_DELTA_SCAN = "GatedDeltaScan"
SELECTIVE_SCAN = "SelectiveScan"

_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")
_CONSTRAINTS = [
    ("T", _FLOATS, "Activations."),
    ("G", _FLOATS, "Gates and step sizes; may be wider than the activations."),
    ("S", ("tensor(float)",), "States, which cumulate, and are fp32 whatever the activations are."),
]
_Parameter = defs.OpSchema.FormalParameter
_Attribute = defs.OpSchema.Attribute


def _optional(name: str, kind: str, description: str) -> _Parameter:
    return _Parameter(name, kind, description, param_option=defs.OpSchema.FormalParameterOption.Optional)


_GATED_DELTA = defs.OpSchema(
    GATED_DELTA_SCAN,
    DOMAIN,
    VERSION,
    doc="Per token and head: S = exp(decay) S; S += key (beta (value - S^T key))^T; output = scale S^T query.",
    inputs=[
        _Parameter("query", "T", "[B, T, H, d_k]"),
        _Parameter("key", "T", "[B, T, H, d_k]"),
        _Parameter("value", "T", "[B, T, H, d_v]"),
        _Parameter("decay", "G", "[B, T, H], logarithm of the decay, at most 0"),
        _Parameter("beta", "G", "[B, T, H]"),
        _Parameter("state", "S", "[B, H, d_k, d_v], before the first token"),
    ],
    outputs=[
        _optional("output", "T", "[B, T, H, d_v]"),
        _Parameter("last_state", "S", "[B, H, d_k, d_v], after the last token"),
    ],
    type_constraints=_CONSTRAINTS,
    attributes=[_Attribute("scale", defs.OpSchema.AttrType.FLOAT, "Factor of the output.")],
)

_SELECTIVE = defs.OpSchema(
    SELECTIVE_SCAN,
    DOMAIN,
    VERSION,
    doc="Mamba-1's scan, per token and channel: x = exp(dt A) x + dt B u; y = (C . x + D u) silu(z), with "
    "dt = delta + delta_bias, or its softplus.",
    inputs=[
        _Parameter("u", "T", "[B, D, T]"),
        _Parameter("delta", "G", "[B, D, T]"),
        _Parameter("A", "S", "[D, N], negative"),
        _Parameter("B", "T", "[B, N, T]"),
        _Parameter("C", "T", "[B, N, T]"),
        _Parameter("state", "S", "[B, D, N], before the first token"),
        _optional("D", "S", "[D]"),
        _optional("z", "T", "[B, D, T]"),
        _optional("delta_bias", "S", "[D]"),
    ],
    outputs=[
        _optional("y", "T", "[B, D, T]"),
        _Parameter("last_state", "S", "[B, D, N], after the last token"),
    ],
    type_constraints=_CONSTRAINTS,
    attributes=[_Attribute("delta_softplus", defs.OpSchema.AttrType.INT, "1: dt goes through softplus.")],
)

SCHEMAS = (_GATED_DELTA, _SELECTIVE)
_LIKE = {GATED_DELTA_SCAN: ("value", "state"), SELECTIVE_SCAN: ("u", "state")}  # the inputs that the outputs are like


def _infer(schema: defs.OpSchema) -> Callable[[shape_inference.InferenceContext], None]:
    names = [parameter.name for parameter in schema.inputs]
    like = [names.index(name) for name in _LIKE[schema.name]]

    def infer(context: shape_inference.InferenceContext) -> None:
        for output, source in enumerate(like):
            inferred = context.get_input_type(source)
            if inferred is not None and output < context.get_num_outputs():
                context.set_output_type(output, inferred)

    return infer


def register() -> None:
    """Registers the schemas with onnx. Doing it again changes nothing."""
    for schema in SCHEMAS:
        if not defs.has(schema.name, VERSION, DOMAIN):
            schema.set_type_and_shape_inference_function(_infer(schema))
            defs.register_schema(schema)


register()
_OPSET = Opset(DOMAIN, VERSION)


def _gated_delta_scan(
    query: Any, key: Any, value: Any, decay: Any, beta: Any, state: Any, scale: float
) -> tuple[Any, Any]:
    return _OPSET.GatedDeltaScan(query, key, value, decay, beta, state, scale=scale)


def _selective_scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    state: Any,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
) -> tuple[Any, Any]:
    return _OPSET.SelectiveScan(u, delta, A, B, C, state, D, z, delta_bias, delta_softplus=int(delta_softplus))


def custom_translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export(dynamo=True)` needs to keep each scan as one node of this domain."""
    return {
        torch.ops.videossm.gated_delta_scan.default: _gated_delta_scan,
        torch.ops.videossm.selective_scan.default: _selective_scan,
    }
