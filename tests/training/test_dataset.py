"""Switched clips: what comes before the switch does not follow the prompt, what comes after does."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from videossm.models.shapes.detector import observe
from videossm.models.shapes.vocabulary import Prompt
from videossm.models.shapes.world import World, render

SCRIPTS = Path(__file__).parents[2] / "training" / "shapes"
FRAMES, CLIPS = 36, 200
PROMPT = Prompt("red", "circle", "moves right", "gray")


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("dataset")


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("train_transformer")


def test_after_the_switch_the_prompt_holds_and_before_it_seldom(dataset: ModuleType) -> None:
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(40):
        world = World.sample(PROMPT, rng)
        clip = dataset.switched_clip(world, rng, FRAMES)
        assert clip.shape == (FRAMES, 64, 64, 3), "whole clips"
        assert np.array_equal(clip[dataset.SWITCH_FRAME :], render(world, FRAMES - dataset.SWITCH_FRAME)), "the prompt"
        before = observe(clip[: dataset.SWITCH_FRAME])
        kept += (before.colour, before.shape, before.motion) == ("red", "circle", "moves right")
    assert kept < 10, f"{kept} of 40 clips follow the prompt from the start"


def test_an_object_that_changes_its_motion_does_not_jump(dataset: ModuleType) -> None:
    rng = np.random.default_rng(1)
    seen = [observe(dataset.switched_clip(World.sample(PROMPT, rng), rng, FRAMES)) for _ in range(40)]
    around = [clip.centres[dataset.SWITCH_FRAME - 1 : dataset.SWITCH_FRAME + 1] for clip in seen]
    steps = [np.abs((b - a + 32) % 64 - 32).max() for a, b in around if np.isfinite([a, b]).all()]
    assert len(steps) > 10 and max(steps) < 4, f"largest step {max(steps)} pixels over {len(steps)} clips"


def test_a_switch_falls_between_two_chunks(dataset: ModuleType, training: ModuleType) -> None:
    """Latents here are frame numbers, so that a cut shows where it was made."""
    layout = training.Layout(training.shapes().window, 7)
    described = torch.tensor([0, dataset.SWITCH_FRAME]).repeat(CLIPS // 2)
    latents = torch.arange(FRAMES).reshape(1, FRAMES, 1, 1, 1).expand(CLIPS, -1, -1, -1, -1).half()
    data = {
        "latents": latents,
        "ids": torch.arange(CLIPS)[:, None],
        "mask": torch.ones(CLIPS, 1),
        "described": described,
    }
    chunks, ids, _, first = next(training.clip_batches(data, layout, 300))
    late = described[ids[:, 0]] > 0
    assert chunks.shape == (300, 7, 3, 1, 1, 1), "whole chunks"
    assert (first[~late] == 0).all() and set(first[late].tolist()) == set(range(1, 6)), "every place of a switch"
    starts = chunks[torch.arange(300), first, 0, 0, 0, 0]
    assert (starts[late] == dataset.SWITCH_FRAME).all(), "the first chunk that is judged starts at the switch"
    frames, ids, _ = next(training.first_batches(data, layout, 300))
    assert (frames[:, 0, 0, 0, 0] >= described[ids[:, 0]]).all(), "first chunks show what their prompts say"
