"""Scans to the TensorRT plugins of `plugins_trt`: they stay nodes, told to TensorRT's parser by namespace and version.

    before  output, last = videossm::GatedDeltaScan<scale, normalize_key, normalize_query>(
                query, key, value, decay, beta, state)
    after   output, last = videossm::GatedDeltaScan<scale, normalize_key, normalize_query, want_output=1,
                state_in_place=0, plugin_version="1", plugin_namespace="videossm">(
                query, key, value, decay, beta, state)

    before  y, last = videossm::SelectiveScan<delta_softplus>(u, delta, A, B, C, state, "", z, "")
    after   y, last = videossm::SelectiveScan<delta_softplus, has_D=0, has_z=1, has_delta_bias=0, ...>(
                u, delta, A, B, C, state, A, z)

The domain stays too: later parsers look for a plugin in the namespace of that name, earlier ones in the attribute's.
Every attribute is written, because the parser warns of each that is left out.

- An output that nothing reads is left out ("") and want_output is 0: the plugin then computes the state alone.
- An optional input that is left out between others is replaced by an input of its type, A or u, and its flag is 0: how
  TensorRT hands an absent tensor to a plugin is not documented. Those left out at the end stay so.
- Types that the plugins do not take are cast (see `typed`).

Constraints: static shapes; the activations of a scan of one type of fp32, fp16 and bf16; all else fp32.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from videossm.export.lowering.batched_heads import batch_heads
from videossm.export.lowering.graph import ScanNode, formals, replace_scans
from videossm.export.lowering.typed import typed
from videossm.export.schemas import (
    DOMAIN,
    GATED_DELTA_SCAN,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    SELECTIVE_SCAN,
)

PLACEHOLDERS = {"D": "A", "z": "u", "delta_bias": "A"}  # of an optional input: a required one of the same type


def lower_plugin(model: ModelProto, state_in_place: bool = False) -> ModelProto:
    """Marks every scan in `model` itself, and returns it. Raises LoweringError naming a node that no plugin takes.

    `state_in_place` has TensorRT write last_state over state. It is for a caller that binds one buffer to both, and
    for an engine that is built with the preview feature of aliased plugin I/O. A caller that swaps two buffers would
    only pay for copies.
    """
    batch_heads(model)

    def replacement(scan: ScanNode) -> list[NodeProto]:
        return _lowered(scan, state_in_place)

    replace_scans(model, [GATED_DELTA_SCAN, SELECTIVE_SCAN], replacement)
    return model


def _lowered(scan: ScanNode, state_in_place: bool) -> list[NodeProto]:
    node, names, own = scan.node, list(formals(scan.node.op_type)), typed(scan)
    flags = {f"has_{name}": int(name in own.inputs) for name in names if name in PLACEHOLDERS}
    last = max(i for i, name in enumerate(names) if name in own.inputs)
    inputs = [own.inputs.get(name) or own.inputs[PLACEHOLDERS[name]] for name in names[: last + 1]]
    lowered = helper.make_node(node.op_type, inputs, own.outputs, name=node.name, domain=DOMAIN)
    attributes = scan.attributes() | flags
    attributes |= {"want_output": int(scan.wanted[0]), "state_in_place": int(state_in_place)}
    attributes |= {"plugin_version": PLUGIN_VERSION, "plugin_namespace": PLUGIN_NAMESPACE}
    lowered.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    lowered.metadata_props.extend(node.metadata_props)
    before, after = own.casts
    return [*before, lowered, *after]
