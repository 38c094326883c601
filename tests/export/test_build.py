"""The fp32 plan of a deployment: graphs in the operators of its lowering, those with scans also as they were before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from videossm.export.build import Built
from videossm.export.lowering import has_scans, lower
from videossm.models.family import Deployment
from videossm.models.videossm.model import VideoModel, random_model
from videossm.models.videossm.presets import test as small_preset
from videossm.runtime import Plan


@pytest.fixture(scope="module")
def built(
    small_model: VideoModel,
    deployed: Callable[[VideoModel], Deployment],
    export_plan: Callable[..., Built],
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    return export_plan(deployed(small_model), tmp_path_factory.mktemp("built"), lowering="standard")


def test_graphs_are_valid_and_lowered(small_plan: Plan) -> None:
    domains = set()
    for engine in small_plan.manifest.engines.values():
        model = onnx.load(small_plan.path / engine.file)
        onnx.checker.check_model(model)
        domains |= {node.domain for node in model.graph.node}
    expected = {"", "com.microsoft"} if small_plan.manifest.lowering == "contrib" else {""}
    assert domains == expected


def test_graphs_hold_no_paths(small_plan: Plan) -> None:
    for engine in small_plan.manifest.engines.values():
        assert b'File "' not in (small_plan.path / engine.file).read_bytes()


@pytest.mark.parametrize("operator", ["Loop", "Scan", "If"])
def test_no_control_flow(small_plan: Plan, operator: str) -> None:
    for engine in small_plan.manifest.engines.values():
        model = onnx.load(small_plan.path / engine.file)
        assert operator not in {node.op_type for node in model.graph.node}


def test_the_graphs_with_scans_are_what_the_plan_was_lowered_from(built: Built) -> None:
    """So plugins are built of the graph that was verified: it is lowered in another way, not traced again."""
    assert list(built.scans) == ["memory"]
    canonical = onnx.load(built.scans["memory"])
    assert has_scans(canonical)
    spec = built.plan.manifest.engines["memory"]
    assert lower(canonical, "standard") == onnx.load(built.plan.path / spec.file)


def test_a_plan_says_which_family_it_is_of(built: Built) -> None:
    assert built.plan.manifest.family == "own"


def identity(export_plan: Callable[..., Built], deployment: Deployment, folder: Path, **options: Any) -> str:
    folder.mkdir()
    return export_plan(deployment, folder, **options).plan.manifest.stream_identity


def test_the_stream_identity_is_of_program_and_weights_alone(
    built: Built,
    deployed: Callable[[VideoModel], Deployment],
    export_plan: Callable[..., Built],
    tmp_path: Path,
) -> None:
    mine = built.plan.manifest.stream_identity
    same = deployed(random_model(small_preset(), seed=2))
    assert identity(export_plan, same, tmp_path / "contrib", lowering="contrib") == mine
    later = replace(same, passes=[replace(each, scalars=dict(each.scalars)) for each in same.passes[1:]])
    assert identity(export_plan, later, tmp_path / "passes") != mine
    assert identity(export_plan, deployed(random_model(small_preset(), seed=3)), tmp_path / "weights") != mine
