"""The shipped checkpoint, end to end: parity with real weights, and a video that shows what was asked."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from videossm.export.source import find_source
from videossm.export.verify import verify
from videossm.models.shapes.detector import observe
from videossm.models.videossm.model import VideoModel
from videossm.models.videossm.presets import shapes
from videossm.runtime import Plan, Rollout

PROMPTS = [
    "a red circle moves left on black",
    "a blue square stands still on gray",
    "a green triangle moves up on white",
]


@pytest.fixture(scope="module")
def shapes_model() -> VideoModel:
    source = find_source("shapes")
    return source.load(source.config)


@pytest.fixture(scope="module", params=["contrib", "standard"])
def shapes_plan(
    request: pytest.FixtureRequest,
    shared: Callable[..., Path],
    shapes_model: VideoModel,
    export_plan: Callable[..., Plan],
) -> Plan:
    made = shared(f"shapes-{request.param}", lambda folder: export_plan(shapes_model, folder, lowering=request.param))
    return Plan.open(made / "engine.plan")


def test_24_chunks_within_tolerance(shapes_plan: Plan, shapes_model: VideoModel) -> None:
    assert [error for error in verify(shapes_plan, shapes_model, 24) if not error.small] == []


@pytest.mark.parametrize("prompt", PROMPTS)
def test_video_shows_what_was_asked(shapes_plan: Plan, prompt: str) -> None:
    """Colour and background of a few prompts; how often everything is right, docs/evaluation.md says."""
    frames = np.concatenate([chunk.frames for chunk in islice(Rollout(shapes_plan, prompt, seed=1), 8)])
    seen = observe(frames)
    words = prompt.split()
    assert (seen.colour, seen.background) == (words[1], words[-1])


def test_weights_are_small(shapes_plan: Plan) -> None:
    source = find_source("shapes")
    assert isinstance(source.checkpoint, Path)
    assert source.checkpoint.stat().st_size <= 16e6


def test_checkpoint_is_of_the_preset() -> None:
    assert find_source("shapes").config == shapes()
