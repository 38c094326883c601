"""What the passes share: constants of a graph that are found, joined without reading them, and added."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from videossm.calib.graph import SCOPES, module_in

STANDARD = ("", "ai.onnx")


def is_constant(value: ir.Value | None) -> bool:
    """Is it an initializer that is no input of the graph?"""
    return value is not None and value.is_initializer() and not value.is_graph_input()


def shape_of(value: ir.Value) -> tuple[int, ...] | None:
    """None unless all its sizes are known."""
    return value.shape.numpy() if value.shape is not None and value.shape.is_static() else None


def operator(value: ir.Value, op_type: str) -> ir.Node | None:
    """The standard operator of that type that computes `value`."""
    node = value.producer()
    return node if node is not None and node.op_type == op_type and node.domain in STANDARD else None


def module_of(node: ir.Node) -> str:
    """The module that a node was traced in, "" where the exporter notes none."""
    return module_in(node.metadata_props.get(SCOPES, "[]"))


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads `value`, which is no output of the graph."""
    readers = {use.node for use in value.uses()}
    return readers.pop() if len(readers) == 1 and not value.is_graph_output() else None


def joined(graph: ir.Graph, name: str, parts: Sequence[ir.Value], shape: tuple[int, ...], axis: int) -> ir.Value:
    """A constant of `shape`: `parts`, each reshaped to its share of it, one after the other along `axis`.

    The parts are read when the graph is saved: until then it takes no memory.
    """
    tensors = [part.const_value for part in parts]
    part_shape = (*shape[:axis], -1, *shape[axis + 1 :])

    def join() -> ir.TensorProtocol:
        arrays = [tensor.numpy().reshape(part_shape) for tensor in tensors if tensor is not None]
        return ir.tensor(np.concatenate(arrays, axis))

    dtype = parts[0].dtype
    assert dtype is not None, f"{name}: constants have a type"
    return add_constant(graph, ir.LazyTensor(join, dtype, ir.Shape(shape), name=name))


def add_constant(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """An initializer of `graph` with the tensor's name."""
    value = ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


def like(value: ir.Value, name: str, shape: tuple[int, ...]) -> ir.Value:
    """A new value of the same type."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=value.type)


def replace(graph: ir.Graph, old: Sequence[ir.Node], new: Sequence[ir.Node], values: dict[ir.Value, ir.Value]) -> None:
    """Puts `new` where the first of `old` stands and removes those; there may be none of both.

    `values`: what is read in the place of an old value from now on. Outputs of the graph keep their names.
    """
    if new:
        graph.insert_before(old[0], new)
    for before, after in values.items():
        before_name = before.name
        if before.is_graph_output():
            before.name = f"{before_name}.replaced"
            after.name = before_name
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
