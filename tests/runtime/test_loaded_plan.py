"""Engines loaded once, shared by rollouts that do not see each other."""

from __future__ import annotations

import numpy as np
import pytest

from videossm.runtime import LoadedPlan, Rollout, StateError
from videossm.runtime.backends import open_backend


def frames_of(rollout, chunks):
    return [next(rollout).frames for _ in range(chunks)]


def test_rollouts_over_it_are_each_as_alone(tiny_plan, tmp_path):
    expected = {seed: frames_of(Rollout(tiny_plan, "red", seed), 6) for seed in (1, 2)}
    with LoadedPlan(tiny_plan) as loaded:
        one, other = Rollout(loaded, "red", 1), Rollout(loaded, "red", 2)
        for index in range(4):
            for seed, rollout in ((1, one), (2, other)):
                assert np.array_equal(next(rollout).frames, expected[seed][index])
        one.save(tmp_path / "state")
        one.close()
        assert np.array_equal(next(other).frames, expected[2][4]), "another's end is none of its own"
        resumed = Rollout.resume(loaded, tmp_path / "state")
        assert np.array_equal(next(resumed).frames, expected[1][4])
    for rollout in (other, resumed):
        with pytest.raises(StateError, match="got a closed one"):
            next(rollout)


def test_a_given_backend_stays_open(tiny_plan):
    with open_backend(tiny_plan.manifest) as backend:
        LoadedPlan(tiny_plan, backend=backend).close()
        next(Rollout(tiny_plan, "red", backend=backend))
