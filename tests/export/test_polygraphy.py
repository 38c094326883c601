"""A plan's graphs go into Polygraphy as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from videossm.runtime import Plan

POLYGRAPHY = Path(sys.executable).with_name("polygraphy")
ENGINES = ("text_encoder", "turn", "step", "memory", "decoder_first", "decoder")


def polygraphy(*arguments: str | Path) -> str:
    command = [str(POLYGRAPHY), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_on_inputs_of_its_own_making(small_plan: Plan, engine: str) -> None:
    assert "PASSED" in polygraphy("run", "--onnxrt", small_plan.path / f"{engine}.onnx")


def test_lists_every_tensor(small_plan: Plan) -> None:
    spec = small_plan.manifest.engines["step"]
    shown = polygraphy("inspect", "model", small_plan.path / spec.file)
    for tensor in (*spec.inputs, *spec.outputs):
        assert f"{tensor.name} [dtype={tensor.dtype}" in shown, tensor.name
