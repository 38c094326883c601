"""An engine's graph as the cost model reads it: nodes in their order, tensors with shapes, types and bytes.

Weights are not read, only their sizes. What is computed of constants alone is a constant: backends compute it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from videossm.calib.graph import constants, inferred_values
from videossm.runtime.errors import PlanError

_STANDARD = ("", "ai.onnx")
SCATTERS = {"ScatterND": 2, "TensorScatter": 1}  # and which of their inputs they write into the first
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True)
class Tensor:
    """`element`: of onnx.TensorProto's; `dtype`: as NumPy and ml_dtypes name it. `constant`: the same in every run."""

    name: str
    shape: tuple[int, ...]
    element: int
    constant: bool = False

    @property
    def dtype(self) -> str:
        return str(helper.tensor_dtype_to_np_dtype(self.element))

    @property
    def item_bytes(self) -> int:
        return helper.tensor_dtype_to_np_dtype(self.element).itemsize

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.size * self.item_bytes


@dataclass(frozen=True)
class Node:
    """`operator`: with its domain, if that is not the standard one. What is left out or never read is None.

    `body`: of a Scan, whose nodes run `times` times.
    """

    operator: str
    name: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    body: EngineGraph | None = None
    times: int = 1

    @property
    def output(self) -> Tensor:
        """The first output that is there."""
        return next(tensor for tensor in self.outputs if tensor is not None)


@dataclass(frozen=True)
class EngineGraph:
    """Nodes that depend on the inputs. `weights`: bytes of constants that they read, by where these lie. `in_place`:
    outputs that lie where an input does, of which only a part is written, and the bytes of that part.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    weights: Mapping[tuple[str, ...], int]
    in_place: Mapping[str, int] = field(default_factory=dict)

    @property
    def input_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.inputs)

    @property
    def output_bytes(self) -> int:
        """What is written of them."""
        return sum(self.in_place.get(tensor.name, tensor.size_bytes) for tensor in self.outputs)


def read_graph(file: Path, in_place: Mapping[str, str] | None = None) -> EngineGraph:
    """`in_place`: outputs that take the place of an input, and that input. Raises PlanError, naming file and tensor,
    for a graph whose shapes are not static or not known.
    """
    graph = _Reader(onnx.load(file, load_external_data=False), file.name).graph()
    parts = {}
    for node in graph.nodes:
        whole, part = (
            (node.inputs[0], node.inputs[SCATTERS[node.operator]]) if node.operator in SCATTERS else (None, None)
        )
        if whole is not None and part is not None and (in_place or {}).get(node.output.name) == whole.name:
            parts[node.output.name] = part.size_bytes
    return replace(graph, in_place=parts)


class _Reader:
    """Of one graph. `where`: the file that errors name."""

    def __init__(self, model: ModelProto, where: str) -> None:
        self.model, self.where = model, where
        fixed = _fixed(model)
        self.read = {value.name for value in model.graph.output}  # by what counts
        for node in reversed(model.graph.node):
            if self.read.intersection(node.output):
                self.read |= _names_read(node)
        self.tensors: dict[str, Tensor] = {}
        for value in inferred_values(model).values():
            self.tensors[value.name] = self._tensor(value, value.name in fixed)
        for weight in model.graph.initializer:
            self.tensors[weight.name] = Tensor(weight.name, tuple(weight.dims), weight.data_type, True)

    def graph(self) -> EngineGraph:
        graph = self.model.graph
        weights = {tensor.name for tensor in graph.initializer}
        counted = (node for node in graph.node if self.read.intersection(node.output) and not self._is_constant(node))
        nodes = tuple(self._node(node) for node in counted)
        read = {tensor.name for node in nodes for tensor in node.inputs if tensor is not None}
        read |= {tensor.name for node in nodes if node.body for tensor in node.body.inputs}
        places = {
            _place(tensor, self.where): self.tensors[tensor.name].size_bytes
            for tensor in graph.initializer
            if tensor.name in read
        }
        inputs = tuple(self.tensors[value.name] for value in graph.input if value.name not in weights)
        return EngineGraph(inputs, tuple(self.tensors[value.name] for value in graph.output), nodes, places)

    def _is_constant(self, node: NodeProto) -> bool:
        return all(self.tensors[name].constant for name in node.output if name in self.tensors)

    def _node(self, node: NodeProto) -> Node:
        operator = node.op_type if node.domain in _STANDARD else f"{node.domain}:{node.op_type}"
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type not in _GRAPHS}
        inputs, outputs = self._known(node.input), self._known([n if n in self.read else "" for n in node.output])
        body, times = None, 1
        if any(attribute.type in _GRAPHS for attribute in node.attribute):
            if operator != "Scan":
                raise PlanError(f"{self.where}: got operator {operator}, expected no branches; export the plan again")
            body, times = self._body(node, attributes)
        return Node(operator, node.name, inputs, outputs, attributes, body, times)

    def _known(self, names: Sequence[str]) -> tuple[Tensor | None, ...]:
        missing = [name for name in names if name and name not in self.tensors]
        if missing:
            raise PlanError(f"{self.where}: {missing[0]}: got no sizes, expected some; export the plan again")
        return tuple(self.tensors[name] if name else None for name in names)

    def _body(self, node: NodeProto, attributes: Mapping[str, Any]) -> tuple[EngineGraph, int]:
        """What a Scan repeats, and how often. Its inputs are states, then tensors of which each turn has a slice."""
        (graph,) = (attribute.g for attribute in node.attribute if attribute.name == "body")
        sliced = int(attributes["num_scan_inputs"])
        axes = attributes.get("scan_input_axes", [0] * sliced)
        outer = [tensor for tensor in self._known(node.input) if tensor is not None]
        states, sequences = outer[: len(outer) - sliced], outer[len(outer) - sliced :]
        sizes = [state.shape for state in states]
        sizes += [_without(tensor.shape, axis) for tensor, axis in zip(sequences, axes, strict=True)]
        typed = GraphProto()
        typed.CopyFrom(graph)
        for value, shape, tensor in zip(typed.input, sizes, outer, strict=True):
            value.CopyFrom(helper.make_tensor_value_info(value.name, tensor.element, shape))
        own = {value.name for value in typed.input} | {name for inner in typed.node for name in inner.output}
        read = dict.fromkeys(name for inner in typed.node for name in inner.input)
        for tensor in (self.tensors[name] for name in read if name in self.tensors and name not in own):
            typed.input.append(helper.make_tensor_value_info(tensor.name, tensor.element, tensor.shape))
        model = ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import, graph=typed)
        turns = sequences[0].shape[axes[0]] if sequences else 1
        return _Reader(model, self.where).graph(), turns

    def _tensor(self, value: ValueInfoProto, constant: bool) -> Tensor:
        sides = value.type.tensor_type.shape.dim
        if not value.type.tensor_type.HasField("shape") or not all(side.HasField("dim_value") for side in sides):
            raise PlanError(f"{self.where}: {value.name}: got no static sizes, expected some; export the plan again")
        return Tensor(value.name, tuple(side.dim_value for side in sides), value.type.tensor_type.elem_type, constant)


def _names_read(node: NodeProto) -> set[str]:
    """Inputs, and what its subgraphs read."""
    inner = [nested for attribute in node.attribute if attribute.type in _GRAPHS for nested in attribute.g.node]
    return set(node.input).union(*(_names_read(nested) for nested in inner)) - {""}


def _fixed(model: ModelProto) -> set[str]:
    """Constants, but for weights that are dequantised: backends keep the small ones and multiply them as they are."""
    kept = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return constants(model) - kept


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    sides = list(shape)
    del sides[axis]
    return tuple(sides)


def _place(tensor: onnx.TensorProto, where: str) -> tuple[str, ...]:
    """Where a weight's bytes lie: engines that share a file share the weights in it."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if "location" in entries:
        return entries["location"], entries.get("offset", "0")
    return where, tensor.name
