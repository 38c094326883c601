"""The plan's tensors: every name once, every graph in the operators of its lowering."""

from __future__ import annotations

import onnx
import pytest

from videossm.export.engines import engine_specs, wiring
from videossm.models.videossm.model import VideoModel
from videossm.runtime import Plan


def test_names_and_wiring_agree(small_model: VideoModel) -> None:
    specs = {spec.name: spec for spec in engine_specs(small_model)}
    wires = wiring(small_model.config)
    presents = [pair["present"] for pair in wires["window"]]
    assert specs["step"].output_names == ["latent_next", *presents]
    assert specs["text_encoder"].output_names == wires["prompt"]
    assert specs["memory"].input_names == [
        *(pair["evicted"] for pair in wires["window"]),
        *(pair["past"] for pair in wires["memory"]),
    ]


def test_graphs_are_valid_and_lowered(small_plan: Plan) -> None:
    domains = set()
    for _, engine in small_plan.manifest.engines.items():
        model = onnx.load(small_plan.path / engine.file)
        onnx.checker.check_model(model)
        domains |= {node.domain for node in model.graph.node}
    expected = {"", "com.microsoft"} if small_plan.manifest.lowering == "contrib" else {""}
    assert domains == expected


def test_graphs_hold_no_paths(small_plan: Plan) -> None:
    for _, engine in small_plan.manifest.engines.items():
        assert b'File "' not in (small_plan.path / engine.file).read_bytes()


@pytest.mark.parametrize("operator", ["Loop", "Scan", "If"])
def test_no_control_flow(small_plan: Plan, operator: str) -> None:
    for _, engine in small_plan.manifest.engines.items():
        model = onnx.load(small_plan.path / engine.file)
        assert operator not in {node.op_type for node in model.graph.node}
