"""Videos of an evaluation are rollouts of the plan; what they show the family judges."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from videossm.calib.evaluate import evaluate, evaluation_chunks, find_evaluation
from videossm.models.family import Figure, Video
from videossm.models.shapes.figures import ShapesEvaluation
from videossm.runtime import Rollout
from videossm.runtime.backends.onnxruntime import OnnxRuntimeBackend

VIDEOS = [Video("red circle", 3, 1.2), Video("blue square", 4, 0.5)]  # of 5 and then 6 frames a chunk, 8 a second


class Judge:
    """Keeps what it is shown."""

    def videos(self):
        return VIDEOS

    def figures(self, frames, fps):
        self.frames, self.fps = frames, fps
        return [Figure("1 s", "colour", 50.0, 2)]


@pytest.fixture
def judge():
    return Judge()


def test_the_videos_are_those_of_rollouts(test_plan, judge):
    made = []
    assert evaluate(test_plan, judge, lambda: made.append(1)) == [Figure("1 s", "colour", 50.0, 2)]
    assert judge.fps == test_plan.manifest.stream.fps == 8
    assert list(judge.frames) == VIDEOS
    assert len(made) == evaluation_chunks(test_plan, judge) == 2 + 1
    for video, chunks in zip(VIDEOS, (2, 1), strict=True):
        rollout = Rollout(test_plan, video.prompt, video.seed, threads=1)
        expected = [chunk.frames[0] for chunk in islice(rollout, chunks)]
        assert np.array_equal(judge.frames[video], np.concatenate(expected))
        assert len(judge.frames[video]) >= video.seconds * judge.fps


def test_a_clip_ends(test_plan, judge):
    stream = test_plan.manifest.stream.model_copy(update={"chunks": 1})
    clip = replace(test_plan, manifest=test_plan.manifest.model_copy(update={"stream": stream}))
    evaluate(clip, judge, lambda: None)
    assert [len(frames) for frames in judge.frames.values()] == [5, 5]
    assert evaluation_chunks(clip, judge) == 2


def test_a_backend_for_every_video(test_plan, judge):
    opened = []

    def backend():
        opened.append(OnnxRuntimeBackend("cpu", 1))
        return opened[-1]

    evaluate(test_plan, judge, lambda: None, backend)
    assert len(opened) == 2


def test_what_can_be_judged(test_plan):
    def plan(**changes):
        return replace(test_plan, manifest=test_plan.manifest.model_copy(update=changes))

    two = test_plan.manifest.stream.model_copy(update={"batch": 2})
    assert isinstance(find_evaluation(plan(name="shapes")), ShapesEvaluation)
    others = [test_plan, plan(name="shapes", stream=two), plan(name="shapes", family="own.module:family")]
    assert [find_evaluation(other) for other in others] == [None] * 3
