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
- Types that the plugins do not take are cast: gates of GatedDeltaScan to fp32; where delta has another type than u,
  all activations of a SelectiveScan to fp32, and y back.

Constraints: static shapes; the activations of a scan of one type of fp32, fp16 and bf16; all else fp32.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto, helper

from videossm.export.lowering.graph import LoweringError, ScanNode, expect_element, formals, replace_scans
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

    def replacement(scan: ScanNode) -> list[NodeProto]:
        return _lowered(scan, state_in_place)

    replace_scans(model, [GATED_DELTA_SCAN, SELECTIVE_SCAN], replacement)
    return model


def _lowered(scan: ScanNode, state_in_place: bool) -> list[NodeProto]:
    node, names = scan.node, list(formals(scan.node.op_type))
    given = {name: value for name, value in zip(names, node.input, strict=False) if value}
    flags = {f"has_{name}": int(name in given) for name in names if name in PLACEHOLDERS}
    elements = {name: value.element for name, value in zip(names, scan.inputs, strict=False) if value}
    _check_types(scan, elements)
    nodes: list[NodeProto] = []

    def cast(label: str, source: str, target: str, element: int) -> str:
        nodes.append(helper.make_node("Cast", [source], [target], name=scan.prefix + label, to=element))
        return target

    to_cast = _to_cast(node.op_type, elements)
    for name in to_cast:
        label = f"{name}_fp32"
        given[name] = cast(label, given[name], scan.prefix + label, TensorProto.FLOAT)
    last = max(i for i, name in enumerate(names) if name in given)
    inputs = [given.get(name) or given[PLACEHOLDERS[name]] for name in names[: last + 1]]
    wanted = scan.wanted[0]
    output_is_cast = wanted and "u" in to_cast
    output = f"{scan.prefix}output_fp32" if output_is_cast else node.output[0] if wanted else ""
    lowered = helper.make_node(node.op_type, inputs, [output, node.output[1]], name=node.name, domain=DOMAIN)
    attributes = scan.attributes() | flags
    attributes |= {"want_output": int(wanted), "state_in_place": int(state_in_place)}
    attributes |= {"plugin_version": PLUGIN_VERSION, "plugin_namespace": PLUGIN_NAMESPACE}
    lowered.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    lowered.metadata_props.extend(node.metadata_props)
    nodes.append(lowered)
    if output_is_cast:
        cast("output", output, node.output[0], elements["u"])
    return nodes


def _check_types(scan: ScanNode, elements: dict[str, int]) -> None:
    """All that is required is there, and the activations are of one type."""
    required = formals(scan.node.op_type)
    first = next(iter(required))
    for name, constraint in required.items():
        if name not in PLACEHOLDERS and name not in elements:
            raise LoweringError(f"{scan.where}: got no input {name}, expected one; give it")
        if name in elements and constraint == "T":
            expect_element(scan, name, elements[name], [elements[first]])


def _to_cast(kind: str, elements: dict[str, int]) -> list[str]:
    """The inputs that the plugin takes in fp32 alone."""
    constraints = formals(kind)
    if kind == SELECTIVE_SCAN and elements["delta"] == elements["u"]:
        return []
    cast = "G" if kind == GATED_DELTA_SCAN else "TG"
    return [name for name, element in elements.items() if constraints[name] in cast and element != TensorProto.FLOAT]
