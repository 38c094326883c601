"""Rollouts seen from inside: every pass, in order, and each rollout as if it were the only one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from videossm.calib.record import Moment, RecordingError, check_finite, record, record_random, started
from videossm.runtime import Snapshot
from videossm.runtime.state import StateHeader

PROMPTS, SEEDS, CHUNKS = ("red circle", "blue square"), (5, 9), 2
LEVEL = "levels.sigma.row"  # what the step looks up for a noise level
TAPS = {"text_encoder": ["gelu"], "step": ["gelu", LEVEL]}
TOLERANCE = 1e-5  # between two sessions that fuse differently, of values around 1


class Seen:
    """What `on_run` and `on_chunk` are called with."""

    def __init__(self):
        self.runs, self.chunks = [], 0

    def on_run(self, moment, tensors):
        self.runs.append((moment, {name: values.copy() for name, values in tensors.items()}))

    def on_chunk(self):
        self.chunks += 1

    @property
    def moments(self):
        return [moment for moment, _ in self.runs]


def recorded(plan, prompts=PROMPTS, seeds=SEEDS):
    seen = Seen()
    record(plan, TAPS, prompts, seeds, CHUNKS, seen.on_run, seen.on_chunk)
    return seen


def test_every_pass_of_every_chunk_in_order(test_plan):
    passes = range(len(test_plan.manifest.passes))
    expected = []
    for rollout in range(len(PROMPTS)):
        expected.append(Moment(rollout, 0, "text_encoder"))  # a prompt that stays is encoded once
        expected += [Moment(rollout, chunk, "step", index) for chunk in range(CHUNKS) for index in passes]
    seen = recorded(test_plan)
    assert seen.moments == expected
    assert seen.chunks == CHUNKS * len(PROMPTS)


def test_the_commit_is_a_chunks_last_pass(test_plan, load_graph, feeds, run_graph):
    """The row that is looked up says at which level a pass really ran."""
    model = load_graph("step")
    levels = [each.scalars["sigma"] for each in test_plan.manifest.passes]
    embedded = [
        run_graph(model, feeds(model) | {"sigma": np.array([level], np.float32)}, [LEVEL])[LEVEL] for level in levels
    ]
    for moment, tensors in recorded(test_plan).runs:
        if moment.engine == "step":
            expected = embedded[moment.index]
            np.testing.assert_allclose(tensors[LEVEL], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_rollout_carries_nothing_of_the_one_before(test_plan):
    second = [tensors for moment, tensors in recorded(test_plan).runs if moment.rollout == 1]
    alone = recorded(test_plan, PROMPTS[1:], SEEDS[1:]).runs
    for got, (moment, expected) in zip(second, alone, strict=True):
        for name, values in expected.items():
            assert np.array_equal(got[name], values), f"{moment}: {name}"


def test_no_prompts(test_plan):
    with pytest.raises(RecordingError, match="got no prompts, expected at least one"):
        recorded(test_plan, (), ())


def test_started_gives_every_stream_a_seed_of_its_own():
    fresh = Snapshot(StateHeader(prompts=[], next_prompts=["a", "b"], seeds=[0, 1], chunk=0), {})
    header = started(fresh, "red circle", 7).header
    assert (header.next_prompts, header.seeds) == (["red circle"] * 2, [7, 8])
    assert (header.prompts, header.chunk) == ([], 0)


def test_random_inputs_run_an_engine_as_often_as_a_rollout_does(test_plan):
    passes = range(len(test_plan.manifest.passes))
    seen = Seen()
    record_random(test_plan, TAPS, 3, CHUNKS, seen.on_run, seen.on_chunk)
    step = [moment for moment in seen.moments if moment.engine == "step"]
    assert step == [Moment(0, chunk, "step", index) for chunk in range(CHUNKS) for index in passes]
    assert seen.chunks == CHUNKS
    others = [moment for moment in seen.moments if moment.engine == "text_encoder"]
    assert others == [Moment(0, chunk, "text_encoder") for chunk in range(CHUNKS)]
    assert all(np.isfinite(values).all() for _, tensors in seen.runs for values in tensors.values())


def test_random_inputs_follow_from_the_seed(test_plan):
    found = []
    for seed in (3, 3, 4):
        seen = Seen()
        record_random(test_plan, TAPS, seed, 1, seen.on_run, seen.on_chunk)
        found.append(seen.runs[-1][1]["gelu"])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    "values",
    [[1.0, np.nan], [np.inf, 1.0], [np.inf, -np.inf]],
    ids=["NaN", "infinity", "infinities that cancel"],
)
def test_a_value_that_is_not_finite_is_told_with_its_place(values):
    moment = Moment(rollout=2, chunk=7, engine="step", index=3)
    with warnings.catch_warnings(), pytest.raises(RecordingError) as error:
        warnings.simplefilter("error")  # NumPy's own would be a second line
        check_finite(moment, "gelu_1", np.array(values, np.float32))
    assert str(error.value).startswith(
        "rollout 2, chunk 7, pass 3, engine step: tensor gelu_1: got a value that is not finite"
    )


def test_finite_values_pass():
    check_finite(Moment(0, 0, "step", 0), "x", np.array([-3e38, 3e38], np.float32))
