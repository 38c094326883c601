"""What the passes share: the scans of a graph with the types of their inputs, and how a node is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, defs, helper

from videossm.export.schemas import DOMAIN, PLUGIN_ATTRIBUTES, VERSION
from videossm.runtime.errors import UserError

ONNX_DOMAINS = ("", "ai.onnx")
FLOATS: dict[int, str] = {  # that a scan's activations and gates may have
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}


class LoweringError(UserError):
    """A lowering that does not exist, or a scan that it cannot express."""


@dataclass(frozen=True)
class TensorType:
    """Element type (onnx.TensorProto.DataType) and static shape of a tensor."""

    element: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ScanNode:
    """One scan: its node, the types of its inputs (None: left out) and which of its outputs something reads."""

    node: NodeProto
    inputs: tuple[TensorType | None, ...]
    wanted: tuple[bool, ...]

    @property
    def prefix(self) -> str:
        """Starts the names of all that replaces the node: the name of its last output, which no other node has."""
        return f"{self.node.output[-1]}."

    @property
    def where(self) -> str:
        """Starts the messages about the node."""
        return f"{self.node.op_type} node {self.node.name!r}"

    def attributes(self) -> dict[str, Any]:
        """Those of the scan itself, defaults included.

        Raises LoweringError for an attribute that is missing or unknown, and for a node that is lowered to a plugin.
        """
        schema = defs.get_schema(self.node.op_type, VERSION, DOMAIN).attributes
        given = {entry.name: helper.get_attribute_value(entry) for entry in self.node.attribute}
        known = [name for name in schema if name not in PLUGIN_ATTRIBUTES]
        if lowered := PLUGIN_ATTRIBUTES & given.keys():
            raise LoweringError(
                f"{self.where}: got {min(lowered)}, which is for TensorRT alone, expected a node that is not lowered "
                "yet; lower the graph that export made"
            )
        if unknown := given.keys() - set(known):
            raise LoweringError(
                f"{self.where}: got attribute {min(unknown)}, expected {', '.join(sorted(known))}; remove it"
            )
        if missing := [name for name in known if schema[name].required and name not in given]:
            raise LoweringError(f"{self.where}: got no attribute {missing[0]}, expected one; add it")
        defaults = {name: schema[name].default_value for name in known if not schema[name].required}
        return {name: helper.get_attribute_value(value) for name, value in defaults.items()} | given


def has_scans(model: ModelProto) -> bool:
    """Whether there is something to lower."""
    return any(node.domain == DOMAIN for node in model.graph.node)


def find_scans(model: ModelProto, kinds: Iterable[str]) -> Iterator[ScanNode]:
    """The scans of the given kinds, in the order of the graph, of which something is read.

    Raises LoweringError when a scan's input has no static shape, or a type that its schema does not allow.
    """
    graph, kinds = model.graph, set(kinds)
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    read.discard("")  # an input or output that is left out
    types = _tensor_types(model)
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type in kinds:
            wanted = tuple(name in read for name in node.output)
            if any(wanted):
                inputs = tuple(_input_type(node, name, types) if name else None for name in node.input)
                scan = ScanNode(node, inputs, wanted)
                _check_elements(scan)
                yield scan


def replace_scans(model: ModelProto, kinds: Iterable[str], replacement: Callable[[ScanNode], list[NodeProto]]) -> None:
    """Puts what `replacement` returns in the place of every scan of the given kinds, in `model` itself.

    Scans of which nothing is read go. Raises what `find_scans` does.
    """
    graph, kinds = model.graph, set(kinds)
    scans = {scan.node.output[-1]: scan for scan in find_scans(model, kinds)}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.domain != DOMAIN or node.op_type not in kinds:
            nodes.append(node)
        elif node.output[-1] in scans:
            nodes.extend(replacement(scans[node.output[-1]]))
    del graph.node[:]
    graph.node.extend(nodes)


def formals(kind: str) -> dict[str, str]:
    """The inputs of an operator, each with its type constraint in the schema: T, G or S."""
    return {parameter.name: parameter.type_str for parameter in defs.get_schema(kind, VERSION, DOMAIN).inputs}


def expect_element(scan: ScanNode, name: str, element: int, expected: Iterable[int]) -> None:
    """Raises LoweringError unless the type of the input `name` is among `expected`."""
    expected = list(expected)
    if element not in expected:
        got = TensorProto.DataType.Name(element).lower()
        raise LoweringError(
            f"{scan.where}: got type {got} for its input {name}, expected "
            f"{' or '.join(FLOATS[kind] for kind in expected)}; cast it"
        )


def opset_version(model: ModelProto) -> int:
    """The version of the standard operators that the model is written in."""
    return max(entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS)


def set_opset(model: ModelProto, domain: str, version: int) -> None:
    """Imports `version` of a domain; 0 ends the import."""
    kept = [entry for entry in model.opset_import if entry.domain != domain]
    if version:
        kept.append(helper.make_opsetid(domain, version))
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _check_elements(scan: ScanNode) -> None:
    for (name, constraint), value in zip(formals(scan.node.op_type).items(), scan.inputs, strict=False):
        if value is not None:
            expect_element(scan, name, value.element, [TensorProto.FLOAT] if constraint == "S" else FLOATS)


def _tensor_types(model: ModelProto) -> dict[str, ValueInfoProto | TensorType]:
    graph = model.graph
    types: dict[str, ValueInfoProto | TensorType] = {}
    for values in (graph.input, graph.value_info, graph.output):
        types.update((value.name, value) for value in values)
    types.update((tensor.name, TensorType(tensor.data_type, tuple(tensor.dims))) for tensor in graph.initializer)
    return types


def _input_type(node: NodeProto, name: str, types: dict[str, ValueInfoProto | TensorType]) -> TensorType:
    where, found = f"{node.op_type} node {node.name!r}", types.get(name)
    if isinstance(found, TensorType):
        return found
    if found is None or not found.type.tensor_type.HasField("shape"):
        raise LoweringError(f"{where}: got no shape for its input {name!r}, expected one; run shape inference first")
    tensor = found.type.tensor_type
    if not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        shape = [dim.dim_param or "?" if not dim.HasField("dim_value") else dim.dim_value for dim in tensor.shape.dim]
        raise LoweringError(
            f"{where}: got shape {shape} for its input {name!r}, expected static sizes; export with them"
        )
    return TensorType(tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim))
