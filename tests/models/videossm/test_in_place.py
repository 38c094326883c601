"""A model whose passes write into the window, exported and verified beside PyTorch, which copies the window."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from videossm.export.cli import export
from videossm.models.videossm import deployment
from videossm.models.videossm.presets import shapes, videossm_1_3b
from videossm.runtime import Plan


def test_a_plan_that_writes_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is verified past the window, where slots are used again."""
    monkeypatch.setattr(deployment, "IN_PLACE_NUMBERS", 0)
    arguments = ["test", "--random-weights", "--lowering", "standard", "--report", "none", "-o", str(tmp_path / "plan")]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 0, result.output
    plan = Plan.open(tmp_path / "plan")
    in_place = plan.manifest.in_place("step")
    assert in_place == {name.replace("window", "written"): name for name in in_place.values()} and in_place
    assert {state.kind for state in plan.manifest.states if ".seen_" in state.name} == {"chunk"}
    written = [node for node in onnx.load(plan.path / "step.onnx").graph.node if node.op_type == "ScatterND"]
    assert {node.output[0]: node.input[0] for node in written} == in_place


def test_where_it_pays() -> None:
    assert [deployment._in_place(config) for config in (shapes(), videossm_1_3b())] == [False, True]
