"""Graphs written by hand, as the cost model reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from videossm.cost.graph import EngineGraph, read_graph
from videossm.export.schemas import DOMAIN

Shapes = Mapping[str, Sequence[int]]


@pytest.fixture
def engine_graph(tmp_path: Path) -> Callable[..., EngineGraph]:
    """`engine_graph(nodes, inputs, outputs, weights, element)`: tensors by name and shape, all of one element type."""

    def made(
        nodes: list[NodeProto],
        inputs: Shapes,
        outputs: Shapes,
        weights: Shapes | None = None,
        element: int = TensorProto.FLOAT,
        constants: Mapping[str, Any] | None = None,
    ) -> EngineGraph:
        def info(shapes: Shapes) -> list[Any]:
            return [helper.make_tensor_value_info(name, element, list(shape)) for name, shape in shapes.items()]

        held = [
            helper.make_tensor(name, element, list(shape), bytes(_size(shape, element)), raw=True)
            for name, shape in (weights or {}).items()
        ]
        held += [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
        graph = helper.make_graph(nodes, "engine", info(inputs), info(outputs), held)
        domains = [("", 23), (DOMAIN, 1), ("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*domain) for domain in domains])
        onnx.save(model, tmp_path / "engine.onnx")
        return read_graph(tmp_path / "engine.onnx")

    return made


def _size(shape: Sequence[int], element: int) -> int:
    size: int = helper.tensor_dtype_to_np_dtype(element).itemsize
    for side in shape:
        size *= side
    return size
