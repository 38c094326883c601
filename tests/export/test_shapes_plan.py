"""The shipped checkpoint, end to end: parity with real weights, and a video that shows what was asked."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from videossm.export.build import Built
from videossm.export.verify import verify
from videossm.models.family import Deployment, find_family
from videossm.models.shapes.detector import observe
from videossm.models.videossm.checkpoint import WEIGHTS
from videossm.models.videossm.presets import shapes
from videossm.runtime import Plan, Rollout

PROMPTS = [
    "a red circle moves left on black",
    "a blue square stands still on gray",
    "a green triangle moves up on white",
]


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    return find_family("shapes").load("shapes", {}, False)


@pytest.fixture(scope="module", params=["contrib", "standard"])
def shapes_plan(
    request: pytest.FixtureRequest,
    shared: Callable[..., Path],
    deployment: Deployment,
    export_plan: Callable[..., Built],
) -> Plan:
    made = shared(f"shapes-{request.param}", lambda folder: export_plan(deployment, folder, lowering=request.param))
    return Plan.open(made / "engine.plan")


def test_24_chunks_within_tolerance(shapes_plan: Plan, deployment: Deployment) -> None:
    assert [error for error in verify(shapes_plan, deployment, 24) if not error.small] == []


@pytest.mark.parametrize("prompt", PROMPTS)
def test_video_shows_what_was_asked(shapes_plan: Plan, prompt: str) -> None:
    """Colour and background of a few prompts; how often everything is right, docs/evaluation.md says."""
    frames = np.concatenate([chunk.frames[0] for chunk in islice(Rollout(shapes_plan, prompt, seed=1), 8)])
    seen = observe(frames)
    words = prompt.split()
    assert (seen.colour, seen.background) == (words[1], words[-1])


def test_checkpoint_is_of_the_preset_and_small(deployment: Deployment) -> None:
    assert deployment.config == shapes().to_dict()
    assert (WEIGHTS / "shapes.safetensors").stat().st_size <= 16e6
