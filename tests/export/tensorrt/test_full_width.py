"""The paper's width, two of its layers, at its resolution: every engine builds in every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from videossm.export.build import BuildOptions, build_plan
from videossm.export.source import find_source
from videossm.export.tensorrt.build import build_engines
from videossm.export.tensorrt.options import TensorRtOptions
from videossm.runtime import Plan

pytest.importorskip("tensorrt_rtx_bindings", reason="needs pip install 'videossm[rtx]'")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wide_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("wide") / "fp32.plan"
    folder.mkdir()
    source = find_source("videossm-1.3b", random_weights=True)
    model = source.load(source.config.replace(transformer={"layers": 2}))
    build_plan(model, source.tokenizer, BuildOptions(lowering="standard"), folder)
    return Plan.open(folder)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8", "int8"])
def test_builds_for_two_architectures(
    wide_plan: Plan,
    in_precision: Callable[[Plan, str], Plan],
    precision: str,
    tmp_path: Path,
    quiet: Callable[[int, str], Any],
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    source = in_precision(wide_plan, precision)
    built = build_engines(source, "tensorrt-rtx", TensorRtOptions(gpu_arch=("sm_89", "sm_120")), folder, quiet)
    plan = Plan.open(folder)
    assert (plan.manifest.stream.height, plan.manifest.stream.width) == (480, 832)
    assert list(built) == ["text_encoder", "step", "memory", "decoder"]
