"""Captured calls as the graphs that are exported: traced, lowered, and run by ONNX Runtime."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from videossm.export.lowering import lower
from videossm.export.schemas import DOMAIN, custom_translation_table
from videossm.models.scans.capture import captured_scans
from videossm.runtime.backends.session import session_options

OPSET = 24


@dataclass
class Exported:
    """A lowered graph: calling it runs it. `scans` counts the scans it was traced to, by operator."""

    session: onnxruntime.InferenceSession
    scans: dict[str, int]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        names = [value.name for value in self.session.get_inputs()]
        feed = {name: tensor.detach().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in self.session.run(None, feed)]


@pytest.fixture(scope="session")
def exported() -> Callable[[torch.nn.Module, tuple[Tensor, ...], str], Exported]:
    """`exported(module, inputs, "standard")`, traced inside `captured_scans`."""

    def export(module: torch.nn.Module, inputs: tuple[Tensor, ...], lowering: str) -> Exported:
        with captured_scans(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own use of torch
            program = torch.onnx.export(
                module.eval(),
                inputs,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=custom_translation_table(),
                verbose=False,
            )
            assert program is not None, "torch.onnx.export returned nothing"
            model = program.model_proto
            onnx.checker.check_model(model, full_check=True)
            scans = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
            lower(model, lowering)
        options = session_options("fp32", 1)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Exported(session, dict(scans))

    return export
