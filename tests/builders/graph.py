"""An ONNX graph written node by node, with the sources and targets that a manifest gives its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shape = tuple[int, ...]


class Graph:
    """One engine. Values are names; `op` numbers them."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []

    def input(self, name: str, shape: Shape, source: str, dtype: str = "float32") -> str:
        self.inputs.append({"name": name, "dtype": dtype, "shape": list(shape), "source": source})
        return name

    def output(self, value: str, name: str, shape: Shape, target: str, dtype: str = "float32") -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append({"name": name, "dtype": dtype, "shape": list(shape), "target": target})

    def constant(self, value: Any, dtype: str = "float32") -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def reshape(self, value: str, shape: Shape) -> str:
        return self.op("Reshape", value, self.constant(shape, "int64"))

    def sum(self, value: str, axis: int) -> str:
        return self.op("ReduceSum", value, self.constant([axis], "int64"), keepdims=0)

    def mean(self, value: str, shape: Shape) -> str:
        """Over all but the batch, spread over `shape` [B, ..]."""
        batch = shape[0]
        flat = self.op("ReduceMean", self.reshape(value, (batch, -1)), self.constant([1], "int64"), keepdims=1)
        spread = self.reshape(flat, (batch, *[1] * (len(shape) - 1)))
        return self.op("Expand", spread, self.constant(shape, "int64"))

    def scaled(self, value: str, factor: float) -> str:
        return self.op("Mul", value, self.constant(factor))

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Writes NAME.onnx; returns the manifest's entry."""

        def info(tensor: dict[str, Any]) -> Any:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor["dtype"]))
            return helper.make_tensor_value_info(tensor["name"], kind, tensor["shape"])

        graph = helper.make_graph(
            self.nodes, name, [info(t) for t in self.inputs], [info(t) for t in self.outputs], self.constants
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"{name}.onnx")
        return {"file": f"{name}.onnx", "weights": None, "inputs": self.inputs, "outputs": self.outputs}
