"""The project's own ONNX operators, domain `videossm` version 1: one node a scan, as export produces it.

A lowering (`videossm.export.lowering`) turns every such node into what a backend runs. Importing this module registers
the schemas, so that `onnx.checker` and shape inference accept an exported graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx import defs, helper, shape_inference
from onnxscript.values import Opset

from videossm.models.scans import operators  # noqa: F401  (registers them with torch)

DOMAIN = "videossm"
VERSION = 1
GATED_DELTA_SCAN = "GatedDeltaScan"
SELECTIVE_SCAN = "SelectiveScan"
PLUGIN_NAMESPACE = DOMAIN
PLUGIN_VERSION = "1"
NORM_MIN = 1e-12  # of what is normalised: added to the norm in squares, or a lower bound of it

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


def _flag(name: str, description: str) -> _Attribute:
    """0 if it is left out."""
    return _Attribute(name, helper.make_attribute(name, 0), description)


def _of_plugin(name: str, kind: defs.OpSchema.AttrType, description: str) -> _Attribute:
    """One that only the lowering `plugin` writes. Without a default, which torch.onnx.export would write."""
    return _Attribute(name, kind, description, required=False)


_INT, _STRING = defs.OpSchema.AttrType.INT, defs.OpSchema.AttrType.STRING
_OF_PLUGIN = [
    _of_plugin("want_output", _INT, "0: the first output is a placeholder that nothing writes."),
    _of_plugin("state_in_place", _INT, "1: TensorRT gives last_state the memory of state (aliased plugin I/O)."),
    _of_plugin("plugin_version", _STRING, "Of TensorRT's plugin."),
    _of_plugin("plugin_namespace", _STRING, "Of TensorRT's plugin."),
]
_PRESENT = [
    _of_plugin(f"has_{name}", _INT, f"0: {name}, if given, is a placeholder that nothing reads.")
    for name in ("D", "z", "delta_bias")
]

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
    attributes=[
        _Attribute("scale", defs.OpSchema.AttrType.FLOAT, "Factor of the output."),
        _flag("normalize_key", "1: key / max(|key|, 1e-12) over d_k in its place."),
        _flag("normalize_query", "1: query / max(|query|, 1e-12) over d_k in its place."),
        *_OF_PLUGIN,
    ],
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
    attributes=[
        _Attribute("delta_softplus", _INT, "1: dt goes through softplus."),
        *_PRESENT,
        *_OF_PLUGIN,
    ],
)

SCHEMAS = (_GATED_DELTA, _SELECTIVE)
PLUGIN_ATTRIBUTES = frozenset(attribute.name for attribute in (*_OF_PLUGIN, *_PRESENT))
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
    query: Any,
    key: Any,
    value: Any,
    decay: Any,
    beta: Any,
    state: Any,
    scale: float,
    normalize_key: bool = False,
    normalize_query: bool = False,
) -> tuple[Any, Any]:
    flags = {"normalize_key": int(normalize_key), "normalize_query": int(normalize_query)}
    return _OPSET.GatedDeltaScan(query, key, value, decay, beta, state, scale=scale, **flags)


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
