"""Figures of the shapes evaluation, over videos of the world itself: what they show is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from videossm.calib import evaluate as module
from videossm.calib.evaluate import Share, can_evaluate, evaluate, evaluation_chunks
from videossm.models.shapes.evaluation import ATTRIBUTES, adherence_cases, endurance_cases
from videossm.models.shapes.vocabulary import COLOURS
from videossm.models.shapes.world import World, render
from videossm.runtime import Rollout
from videossm.runtime.backends.onnxruntime import OnnxRuntimeBackend

SEEDS, PROMPTS = 1, 6
LONG_S, CHUNKS, LAST_CHUNKS = 12.0, 72, 40  # of 3 frames, 8 a second: the end begins where the long videos are judged
SHORT, LONG, LAST = "5 s", "12 s", "last 40 of 72 chunks"


@pytest.fixture
def plan(test_plan):
    """The small plan under the name of the one that the evaluation knows."""
    return replace(test_plan, manifest=test_plan.manifest.model_copy(update={"name": "shapes"}))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {
        "ADHERENCE_SEEDS": SEEDS,
        "ENDURANCE_PROMPTS": PROMPTS,
        "ENDURANCE_S": LONG_S,
        "CHUNKS": CHUNKS,
        "LAST_CHUNKS": LAST_CHUNKS,
    }.items():
        monkeypatch.setattr(module, name, value)


def cases():
    return dict.fromkeys([*adherence_cases(SEEDS), *endurance_cases(PROMPTS)])


def show(monkeypatch, shown):
    """Makes the evaluation see, in place of rollouts, what `shown(prompt, frames)` renders."""

    def videos(plan, lengths, on_chunk, backend):
        prompts = {(str(prompt), seed): prompt for prompt, seed in cases()}
        frames = plan.manifest.stream.frames_per_chunk
        return {case: shown(prompts[case], frames * chunks) for case, chunks in lengths.items()}

    monkeypatch.setattr(module, "_videos", videos)


def world(prompt, frames):
    return render(World.sample(prompt, np.random.default_rng(len(str(prompt)))), frames)


def other_colour(prompt):
    colours = list(COLOURS)
    return replace(prompt, colour=colours[(colours.index(prompt.colour) + 1) % len(colours)])


def test_videos_that_show_what_they_should(plan, monkeypatch):
    show(monkeypatch, world)
    figures = evaluate(plan, lambda: None)
    names = [*ATTRIBUTES, "all"]
    assert list(figures) == [
        *((SHORT, name) for name in names),
        (LONG, "colour"),
        (LONG, "shape"),
        *((LAST, name) for name in ATTRIBUTES),
    ]
    assert {figures[SHORT, name] for name in names} == {Share(100.0, len(adherence_cases(SEEDS)))}
    assert {figures[LONG, name] for name in ("colour", "shape")} == {Share(100.0, PROMPTS)}
    assert {figures[LAST, name] for name in ATTRIBUTES} == {Share(100.0, 3 * PROMPTS)}


def test_videos_that_change_colour_late(plan, monkeypatch):
    """What is judged before stays right; of the end only the colour falls."""

    def drifting(prompt, frames):
        judged = round(LONG_S * plan.manifest.stream.fps)
        return np.concatenate([world(prompt, frames)[:judged], world(other_colour(prompt), frames)[judged:]])

    show(monkeypatch, drifting)
    figures = evaluate(plan, lambda: None)
    assert figures[SHORT, "all"].percent == figures[LONG, "colour"].percent == 100
    assert figures[LAST, "colour"].percent == 0
    assert figures[LAST, "shape"].percent == figures[LAST, "background"].percent == 100


def test_videos_of_the_wrong_shape(plan, monkeypatch):
    shapes = {"circle": "square", "square": "triangle", "triangle": "circle"}
    show(monkeypatch, lambda prompt, frames: world(replace(prompt, shape=shapes[prompt.shape]), frames))
    figures = evaluate(plan, lambda: None)
    assert figures[SHORT, "shape"].percent == figures[SHORT, "all"].percent == figures[LAST, "shape"].percent == 0
    assert figures[SHORT, "colour"].percent == figures[LONG, "colour"].percent == 100


def test_how_long_each_video_is(plan):
    lengths = module._lengths(plan)
    assert len(lengths) == len(cases())
    assert sum(lengths.values()) == evaluation_chunks(plan)
    for prompt, seed in cases():
        long = (prompt, seed) in endurance_cases(PROMPTS)
        chunks = lengths[str(prompt), seed]
        assert chunks == (CHUNKS if long else 14), "5 s are 40 frames, 13.3 chunks of 3"


def test_the_videos_are_those_of_rollouts(plan, monkeypatch):
    cases = {("red circle", 3): 2, ("blue square", 4): 1}
    made = []
    videos = module._videos(plan, cases, lambda: made.append(1), None)
    assert len(made) == 3
    for (prompt, seed), chunks in cases.items():
        expected = [chunk.frames for chunk in islice(Rollout(plan, prompt, seed, threads=1), chunks)]
        assert np.array_equal(videos[prompt, seed], np.concatenate(expected))


def test_a_backend_for_every_video(plan):
    opened = []

    def backend():
        opened.append(OnnxRuntimeBackend("cpu", 1))
        return opened[-1]

    module._videos(plan, {("red circle", 3): 1, ("blue square", 4): 1}, lambda: None, backend)
    assert len(opened) == 2


def test_what_can_be_judged(plan, test_plan):
    stream = plan.manifest.stream.model_copy(update={"batch": 2})
    two = replace(plan, manifest=plan.manifest.model_copy(update={"stream": stream}))
    assert [can_evaluate(each) for each in (plan, test_plan, two)] == [True, False, False]
