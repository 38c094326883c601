"""The memory engine with its scans as plugins: the tensors of the plan's own, and nothing but plugins inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from videossm.export.lowering.graph import opset_version
from videossm.export.schemas import DOMAIN
from videossm.export.tensorrt.plugin_memory import write_plugin_memory
from videossm.runtime import Plan


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_it_takes_the_place_of_the_plans_own(
    shapes_plan: Plan, in_precision: Callable[[Plan, str], Plan], precision: str, tmp_path: Path
) -> None:
    plan = in_precision(shapes_plan, precision)
    model, own = onnx.load(write_plugin_memory(plan, tmp_path)), onnx.load(plan.path / "memory.onnx")
    onnx.checker.check_model(model)
    for got, expected in ((model.graph.input, own.graph.input), (model.graph.output, own.graph.output)):
        assert {value.name: str(value.type) for value in got} == {value.name: str(value.type) for value in expected}
    scans = [node for node in model.graph.node if node.domain == DOMAIN]
    assert len(scans) == shapes_plan.manifest.model["transformer"]["layers"]
    for node in scans:
        assert {entry.name for entry in node.attribute} >= {"plugin_version", "plugin_namespace", "want_output"}
    assert {node.op_type for node in model.graph.node} <= {"GatedDeltaScan", "Cast", "Reshape", "Transpose", "Identity"}
    assert opset_version(model) == opset_version(own)
