"""A scan in the types that the project's own kernels take: activations of one type, all else in fp32.

    before  output, last = videossm::GatedDeltaScan(query, key, value, decay, beta, state)
    after   output, last = videossm::GatedDeltaScan(query, key, value, Cast(decay), Cast(beta), state)

Gates of GatedDeltaScan are cast to fp32; where delta has another type than u, all activations of a SelectiveScan are,
and y is cast back. An output that nothing reads is left out ("").
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto, TensorProto, helper

from videossm.export.lowering.graph import LoweringError, ScanNode, expect_element, formals
from videossm.export.schemas import GATED_DELTA_SCAN, SELECTIVE_SCAN

OPTIONAL = ("D", "z", "delta_bias")


@dataclass(frozen=True)
class TypedScan:
    """`inputs`: those that are there, by their names in the schema. `casts`: nodes before the scan, and after it."""

    inputs: dict[str, str]
    outputs: tuple[str, str]
    casts: tuple[list[NodeProto], list[NodeProto]]


def typed(scan: ScanNode) -> TypedScan:
    """Raises LoweringError for a scan that lacks an input, or whose activations are of several types."""
    node, names = scan.node, list(formals(scan.node.op_type))
    inputs = {name: value for name, value in zip(names, node.input, strict=False) if value}
    elements = {name: value.element for name, value in zip(names, scan.inputs, strict=False) if value}
    _check_types(scan, elements)
    before: list[NodeProto] = []
    after: list[NodeProto] = []

    def cast(nodes: list[NodeProto], label: str, source: str, target: str, element: int) -> str:
        nodes.append(helper.make_node("Cast", [source], [target], name=scan.prefix + label, to=element))
        return target

    to_cast = _to_cast(node.op_type, elements)
    for name in to_cast:
        label = f"{name}_fp32"
        inputs[name] = cast(before, label, inputs[name], scan.prefix + label, TensorProto.FLOAT)
    output = node.output[0] if scan.wanted[0] else ""
    if output and "u" in to_cast:
        output = f"{scan.prefix}output_fp32"
        cast(after, "output", output, node.output[0], elements["u"])
    return TypedScan(inputs, (output, node.output[1]), (before, after))


def _check_types(scan: ScanNode, elements: dict[str, int]) -> None:
    """All that is required is there, and the activations are of one type."""
    required = formals(scan.node.op_type)
    first = next(iter(required))
    for name, constraint in required.items():
        if name not in OPTIONAL and name not in elements:
            raise LoweringError(f"{scan.where}: got no input {name}, expected one; give it")
        if name in elements and constraint == "T":
            expect_element(scan, name, elements[name], [elements[first]])


def _to_cast(kind: str, elements: dict[str, int]) -> list[str]:
    """The inputs that the kernels take in fp32 alone."""
    constraints = formals(kind)
    if kind == SELECTIVE_SCAN and elements["delta"] == elements["u"]:
        return []
    cast = "G" if kind == GATED_DELTA_SCAN else "TG"
    return [name for name, element in elements.items() if constraints[name] in cast and element != TensorProto.FLOAT]
