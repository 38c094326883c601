"""Plans of the small preset, exported once for all tests of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from videossm.export.build import BuildOptions, Built, build_plan
from videossm.models.family import Deployment
from videossm.models.shapes.tokenizer import build_tokenizer
from videossm.models.videossm.deployment import deployment
from videossm.models.videossm.model import VideoModel, random_model
from videossm.models.videossm.presets import test as small_preset
from videossm.runtime import Plan


@pytest.fixture(scope="session")
def small_model() -> VideoModel:
    return random_model(small_preset(), seed=2)


@pytest.fixture(scope="session")
def deployed() -> Callable[[VideoModel], Deployment]:
    """`deployed(model)`, with the tokenizer of the shapes."""
    return lambda model: deployment(model, build_tokenizer().to_str())


@pytest.fixture(scope="session")
def export_plan() -> Callable[..., Built]:
    """`export_plan(deployment, folder, lowering="contrib", opset=23)`: in the folders engine.plan and canonical."""

    def export(deployment: Deployment, folder: Path, lowering: str = "contrib", opset: int = 23) -> Built:
        plan, canonical = folder / "engine.plan", folder / "canonical"
        plan.mkdir()
        canonical.mkdir()
        return build_plan(deployment, BuildOptions("own", lowering, opset), plan, canonical)

    return export


@pytest.fixture(scope="session", params=["contrib", "standard"])
def small_plan(request: pytest.FixtureRequest, small_plan_in: Callable[..., Plan]) -> Plan:
    """Of `small_model`."""
    return small_plan_in(request.param)
