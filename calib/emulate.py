"""What a typed half graph computes, as an fp32 graph that rounds: for judging fp16 and bf16 on a CPU.

    before  y = Op(x)                                      x, y in half
    after   y.exact = Op(x); y.half = Cast(y.exact); y = Cast(y.half)          but for y.half in fp32

ONNX Runtime's CPU has next to no bf16 kernels, and between its fp16 nodes it keeps fp32, so that nothing is rounded
there; the pairs of casts it keeps. Inputs are rounded too, outputs are rounded and fp32, weights hold rounded values.
Every node counts as exact inside: an attention that rounds its probabilities before the second product, as TensorRT's
does, is a little worse than this, a product whose bias is added before it is rounded a little better.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from videossm.calib.half import ELEMENT, FP32, MOVEMENTS


def emulate(model: ModelProto) -> ModelProto:
    """An fp32 graph that computes what `model`, typed by `videossm.calib.half`, would; `model` is left as it is."""
    emulated = ModelProto()
    emulated.CopyFrom(model)
    graph = emulated.graph
    halves = _halves(graph)
    for values in (graph.input, graph.value_info, graph.output):
        for value in values:
            if value.name in halves:
                value.type.tensor_type.elem_type = FP32
    for tensor in graph.initializer:
        if tensor.name in halves:
            exact = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in halves:
            (to,) = (entry for entry in node.attribute if entry.name == "to")
            to.i = FP32
    made = {value.name for value in graph.input}
    made.update(name for node in graph.node if node.op_type not in MOVEMENTS for name in node.output)
    return round_tensors(emulated, {name: element for name, element in halves.items() if name in made})


def round_tensors(model: ModelProto, elements: Mapping[str, int]) -> ModelProto:
    """Rounds the given inputs and inner tensors of an fp32 graph to an element type each, in `model` itself."""
    graph = model.graph
    names = {value.name: f"{value.name}.rounded" for value in graph.input if value.name in elements}
    nodes = [node for name, rounded in names.items() for node in _rounding(name, rounded, elements[name])]
    for node in graph.node:
        written = NodeProto()
        written.CopyFrom(node)
        written.input[:] = [names.get(name, name) for name in node.input]
        nodes.append(written)
        for i, name in enumerate(node.output):
            if name in elements:
                written.output[i] = f"{name}.exact"
                nodes += _rounding(written.output[i], name, elements[name])
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _rounding(source: str, target: str, element: int) -> list[NodeProto]:
    half = f"{target}.half"
    return [
        helper.make_node("Cast", [source], [half], name=half, to=element),
        helper.make_node("Cast", [half], [target], name=f"{target}.back", to=FP32),
    ]


def _halves(graph: GraphProto) -> dict[str, int]:
    """Element types of all tensors in half precision."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for values in (graph.input, graph.value_info, graph.output):
        types.update((value.name, value.type.tensor_type.elem_type) for value in values)
    return {name: element for name, element in types.items() if element in ELEMENT.values()}
