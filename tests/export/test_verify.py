"""The exported plan against the PyTorch rollout: the promise of the whole project, in numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from videossm.export.build import Built
from videossm.export.verify import TOLERANCE, ChunkError, relative_error, verification_prompts, verify
from videossm.models.family import Deployment
from videossm.models.videossm.model import VideoModel, random_model
from videossm.models.videossm.presets import test as small_preset
from videossm.models.videossm.rollout import ReferenceRollout
from videossm.runtime import Plan, Rollout
from videossm.runtime.noise import noise
from videossm.runtime.prompt import PromptTokenizer

Deployed = Callable[[VideoModel], Deployment]

CHUNKS = 24  # the window holds 3: it rolls 21 times and the memory is read 20 times


def test_24_chunks_within_tolerance(small_plan: Plan, small_model: VideoModel, deployed: Deployed) -> None:
    errors = list(verify(small_plan, deployed(small_model), CHUNKS))
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
def test_variants_within_tolerance(
    changes: dict, tmp_path: Path, deployed: Deployed, export_plan: Callable[..., Built]
) -> None:
    """By the family's own rollout, and by the plan's program over the modules, as for a family without one."""
    deployment = deployed(random_model(small_preset().replace(**changes), seed=4))
    plan = export_plan(deployment, tmp_path).plan
    for reference in (deployment, replace(deployment, reference=None)):
        assert [error for error in verify(plan, reference, 7) if not error.small] == []


def test_prompt_switches_equal_the_reference(small_plan: Plan, small_model: VideoModel) -> None:
    """The window is recomputed under the new prompt, wherever the ring's start lies."""
    (prompt,) = verification_prompts(small_plan)
    other = " ".join(reversed(prompt.split()))
    tokenizer = PromptTokenizer(small_plan.tokenizer_file, small_plan.manifest.text)
    rollout = Rollout(small_plan, prompt, seed=0)
    shape = small_plan.manifest.sample.shape[1:]

    def drawn(chunk: int, draw: int) -> torch.Tensor:
        return torch.from_numpy(noise(0, chunk, draw, shape)[None])

    ids, mask = (torch.from_numpy(array) for array in tokenizer.encode([prompt]))
    reference = ReferenceRollout(small_model, ids, mask, drawn)
    for until, then in ((2, other), (7, prompt), (10, None)):
        for expected in islice(reference, until - rollout.next_index):
            next(rollout)
            assert relative_error(rollout.sample, expected.latent.numpy()) <= TOLERANCE, rollout.next_index
        if then is not None:
            rollout.set_prompt(then)
            reference.set_prompt(*(torch.from_numpy(array) for array in tokenizer.encode([then])))


def test_a_wrong_plan_shows(small_plan: Plan, deployed: Deployed) -> None:
    other = deployed(random_model(small_preset(), seed=99))
    assert max(error.sample for error in verify(small_plan, other, 1)) > 1e-2


@pytest.mark.parametrize(("sample", "pixels"), [(2e-4, 0), (float("nan"), 0), (0.0, 2)])
def test_what_is_not_within(sample: float, pixels: int) -> None:
    assert ChunkError(0, 1e-4, 1).small
    assert not ChunkError(0, sample, pixels).small


@pytest.mark.parametrize("opset", [24, 25])
def test_later_opsets(
    opset: int, tmp_path: Path, small_model: VideoModel, deployed: Deployed, export_plan: Callable[..., Built]
) -> None:
    plan = export_plan(deployed(small_model), tmp_path, opset=opset).plan
    assert [error for error in verify(plan, deployed(small_model), 5) if not error.small] == []


def test_relative_error() -> None:
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == pytest.approx(1 / np.sqrt(2))
