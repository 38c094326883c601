"""The paper's width, two of its layers, at its resolution: every engine builds in every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from videossm.export.build import Built
from videossm.export.tensorrt.build import build_engines
from videossm.export.tensorrt.options import TensorRtOptions
from videossm.models.family import find_family
from videossm.runtime import Plan

pytest.importorskip("tensorrt_rtx_bindings", reason="needs pip install 'videossm[rtx]'")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wide_plan(tmp_path_factory: pytest.TempPathFactory, export_plan: Callable[..., Built]) -> Plan:
    deployment = find_family("videossm-1.3b").load("videossm-1.3b", {"layers": 2}, True)
    return export_plan(deployment, tmp_path_factory.mktemp("wide"), "standard").plan


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
    built = build_engines(source, {}, "tensorrt-rtx", TensorRtOptions(gpu_arch=("sm_89", "sm_120")), folder, quiet)
    plan = Plan.open(folder)
    assert (plan.manifest.stream.height, plan.manifest.stream.width) == (480, 832)
    assert list(built) == list(source.manifest.engines)
