"""The exported plan against the PyTorch rollout: the promise of the whole project, in numbers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from videossm.export.verify import (
    TOLERANCE,
    ChunkError,
    reference_rollout,
    relative_error,
    verification_prompts,
    verify,
)
from videossm.models.videossm.model import VideoModel, random_model
from videossm.models.videossm.presets import test as small_preset
from videossm.runtime import Plan, Rollout
from videossm.runtime.prompt import PromptTokenizer

CHUNKS = 24  # the window holds 3: it rolls 21 times and the memory is read 20 times


def test_24_chunks_within_tolerance(small_plan: Plan, small_model: VideoModel) -> None:
    errors = list(verify(small_plan, small_model, CHUNKS))
    assert len(errors) == CHUNKS
    assert [error for error in errors if not error.small] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": {"kind": "euler"}, "transformer": {"prediction": "x0"}},
        {"transformer": {"memory": False}},
        {"window": {"rope_frame": "absolute"}},
        {"window": {"chunk_frames": 2, "window_frames": 4, "sink_frames": 0}},
        {"batch": 2},
    ],
    ids=["euler-x0", "no-memory", "absolute-positions", "no-sink", "batch-2"],
)
def test_variants_within_tolerance(changes: dict, tmp_path: Path, export_plan: Callable[..., Plan]) -> None:
    model = random_model(small_preset().replace(**changes), seed=4)
    plan = export_plan(model, tmp_path)
    assert [error for error in verify(plan, model, 7) if not error.small] == []


def test_prompt_switches_equal_the_reference(small_plan: Plan, small_model: VideoModel) -> None:
    """The window is recomputed under the new prompt, wherever the ring's start lies."""
    (prompt,) = verification_prompts(small_plan)
    other = " ".join(reversed(prompt.split()))
    tokenizer = PromptTokenizer(small_plan.tokenizer_file, small_plan.manifest.text.length)
    rollout = Rollout(small_plan, prompt, seed=0)
    reference = reference_rollout(small_plan, small_model, [prompt], [0])
    for until, then in ((2, other), (7, prompt), (10, None)):
        for expected in islice(reference, until - rollout.next_index):
            next(rollout)
            assert relative_error(rollout.latent, expected.latent.numpy()) <= TOLERANCE, rollout.next_index
        if then is not None:
            rollout.set_prompt(then)
            reference.set_prompt(*(torch.from_numpy(array) for array in tokenizer.encode([then])))


def test_a_wrong_plan_shows(small_plan: Plan) -> None:
    other = random_model(small_preset(), seed=99)
    assert max(error.latent for error in verify(small_plan, other, 1)) > 1e-2


@pytest.mark.parametrize(("latent", "pixels"), [(2e-4, 0), (float("nan"), 0), (0.0, 2)])
def test_what_is_not_within(latent: float, pixels: int) -> None:
    assert ChunkError(0, 1e-4, 1).small
    assert not ChunkError(0, latent, pixels).small


@pytest.mark.parametrize("opset", [24, 25])
def test_later_opsets(opset: int, tmp_path: Path, small_model: VideoModel, export_plan: Callable[..., Plan]) -> None:
    plan = export_plan(small_model, tmp_path, opset=opset)
    assert [error for error in verify(plan, small_model, 5) if not error.small] == []


def test_relative_error() -> None:
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == pytest.approx(1 / np.sqrt(2))
