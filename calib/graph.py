"""What the passes share: modules of nodes, readers of tensors, constants read, added and dropped."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference
from onnx.external_data_helper import uses_external_data

SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of a node: ['', outer module, .., its module, what it computes]


def module_of(node: NodeProto) -> str:
    """The module that a node was traced in, "" where the exporter notes none."""
    return next((module_in(entry.value) for entry in node.metadata_props if entry.key == SCOPES), "")


def module_in(scopes: str) -> str:
    """The module in the value of a node's SCOPES, "" where there is none."""
    names: list[str] = ast.literal_eval(scopes)
    return names[-2] if len(names) > 1 else ""


def readers(model: ModelProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor, in the graph's order."""
    found: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            found[name].append(node)
    return found


def constants(model: ModelProto) -> set[str]:
    """The initializers, and all that is computed from nothing else."""
    names = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if all(name in names for name in node.input if name):
            names.update(node.output)
    return names


def values_by_name(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Types and shapes of all tensors but constants, where the graph says them."""
    graph = model.graph
    return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}


def inferred_values(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Every tensor but constants, its type and shape inferred where the graph does not tell them."""
    graph = GraphProto(name=model.graph.name, node=model.graph.node, input=model.graph.input)
    graph.value_info.extend(model.graph.value_info)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:  # Inference reads shapes and axes; a copy of all others would be large.
        if len(tensor.dims) > 1:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            graph.initializer.append(tensor)
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    inferred = shape_inference.infer_shapes(bare).graph
    weights = {tensor.name for tensor in model.graph.initializer}
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    return {value.name: value for value in values if value.name not in weights}


def initializers(model: ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def values_of(tensor: TensorProto, folder: Path | None) -> NDArray[Any]:
    """A copy of a constant; `folder` is where the data lies that was not loaded with the model."""
    if uses_external_data(tensor):
        loaded = TensorProto()
        loaded.CopyFrom(tensor)
        _load_data(loaded, folder or Path())
        tensor = loaded
    return numpy_helper.to_array(tensor)


def load_graph(file: Path) -> ModelProto:
    """A graph with all its weights."""
    model = onnx.load(file, load_external_data=False)
    load_weights(model, file.parent)
    return model


def load_weights(model: ModelProto, folder: Path) -> None:
    """Puts what lies in files beside the graph into `model`.

    By our own hands: onnx 1.22 and later refuse a file with a second hard link, as plans have that share one.
    """
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            _load_data(tensor, folder)


def _load_data(tensor: TensorProto, folder: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / Path(entries["location"]).name).open("rb") as file:  # beside the graph, whatever it says
        file.seek(int(entries.get("offset", 0)))
        tensor.raw_data = file.read(int(entries.get("length", -1)))
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT


def add_constant(model: ModelProto, name: str, values: NDArray[Any]) -> str:
    """Returns `name`, for the input of a node."""
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def add_value_info(model: ModelProto, like: str, name: str) -> None:
    """Says that the tensor `name` has the type and shape of `like`, where those are known."""
    known = values_by_name(model).get(like)
    if known is not None:
        added = model.graph.value_info.add()
        added.CopyFrom(known)
        added.name = name


def drop_unread(model: ModelProto, names: Collection[str]) -> None:
    """Removes those of the named initializers that nothing reads."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for index in reversed(range(len(graph.initializer))):
        name = graph.initializer[index].name
        if name in names and name not in read:
            del graph.initializer[index]


def replace_input(node: NodeProto, old: str, new: str) -> None:
    node.input[:] = [new if name == old else name for name in node.input]


def rebuild(
    model: ModelProto,
    before: Mapping[str, Sequence[NodeProto]],
    dropped: Collection[str] = (),
) -> None:
    """Puts nodes before the named ones, and leaves out those in `dropped`."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes.extend(before.get(node.name, ()))
        if node.name not in dropped:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
