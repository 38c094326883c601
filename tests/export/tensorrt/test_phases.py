"""How far a build is, from the nested phases that TensorRT reports."""

from __future__ import annotations

import pytest

from videossm.export.tensorrt.phases import Phases


def test_steps_of_inner_phases_count_within_a_step_of_the_outer() -> None:
    phases = Phases()
    assert phases.fraction == 0
    phases.start("build", None, 4)
    assert phases.step("build", 0)
    assert phases.fraction == 0.25
    phases.start("tactics", "build", 2)
    phases.step("tactics", 0)
    assert phases.fraction == pytest.approx(0.25 + 0.25 / 2)
    phases.finish("tactics")
    phases.step("build", 3)
    assert phases.fraction == 1


def test_it_never_falls_and_never_exceeds_one() -> None:
    phases = Phases()
    phases.start("build", None, 2)
    phases.start("tactics", "build", 1)
    phases.step("tactics", 4)  # more than announced
    assert phases.fraction == 0.5
    phases.finish("tactics")
    assert phases.fraction == 0.5
    phases.finish("build")
    phases.finish("build")
    assert phases.fraction == 0.5


def test_a_phase_without_steps() -> None:
    phases = Phases()
    phases.start("build", None, 0)
    assert phases.fraction == 0
    assert phases.step("of another", 0), "and one that was never announced"


def test_cancelled_ends_at_the_next_step() -> None:
    phases = Phases()
    phases.start("build", None, 2)
    phases.cancelled.set()
    assert not phases.step("build", 0)
