"""Plans of the small preset, exported once for all tests of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from videossm.export.build import BuildOptions, build_plan
from videossm.models.shapes.tokenizer import build_tokenizer
from videossm.models.videossm.model import VideoModel, random_model
from videossm.models.videossm.presets import test as small_preset
from videossm.runtime import Plan


@pytest.fixture(scope="session")
def small_model() -> VideoModel:
    return random_model(small_preset(), seed=2)


@pytest.fixture(scope="session")
def export_plan() -> Callable[..., Plan]:
    """`export_plan(model, folder, lowering=...)`: the plan that export makes of a model."""

    def export(model: VideoModel, folder: Path, **options: str) -> Plan:
        path = folder / "engine.plan"
        path.mkdir()
        build_plan(model, build_tokenizer(), BuildOptions(**options), path)
        return Plan.open(path)

    return export


@pytest.fixture(scope="session", params=["contrib", "standard"])
def small_plan(request: pytest.FixtureRequest, small_plan_in: Callable[[str], Plan]) -> Plan:
    """Of `small_model`."""
    return small_plan_in(request.param)
