"""Small graphs, before and after a pass, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from videossm.export.trace import quiet
from videossm.runtime.backends.session import session_options

Arrays = Mapping[str, NDArray[np.generic]]


@pytest.fixture
def traced() -> Callable[..., ir.Model]:
    """`traced(module, inputs, input_names, output_names)`: its graph, before any pass."""

    def trace(module: nn.Module, inputs: tuple, input_names: list[str], output_names: list[str]) -> ir.Model:
        with torch.no_grad(), quiet():
            names = {"input_names": input_names, "output_names": output_names}
            program = torch.onnx.export(module.eval(), inputs, dynamo=True, opset_version=23, verbose=False, **names)
        assert program is not None
        return program.model

    return trace


@pytest.fixture
def run() -> Callable[..., list[NDArray[np.generic]]]:
    """`run(model, feeds)`: its outputs."""

    def compute(model: ir.Model, feeds: Arrays) -> list[NDArray[np.generic]]:
        content = ir.to_proto(model).SerializeToString()
        options = session_options("fp32", 1)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return session.run(None, dict(feeds))

    return compute


@pytest.fixture
def operators() -> Callable[[ir.Model], dict[str, int]]:
    """`operators(model)`: how many nodes there are of each."""

    def count(model: ir.Model) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in model.graph:
            found[node.op_type] = found.get(node.op_type, 0) + 1
        return found

    return count
