"""Where the threads of a session run: on faked processors, and on those of this machine."""

from __future__ import annotations

import os
import sys
import time
from itertools import count
from pathlib import Path

import pytest

from videossm.runtime import Rollout
from videossm.runtime.backends import processors
from videossm.runtime.backends.processors import Placement, place

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason=f"{sys.platform} ties no thread")


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """`fake({0: "0,4", ..}, allowed)`: processors with the text of their cores' siblings; None where it is missing."""

    def make(siblings, allowed=None):
        for processor, text in siblings.items():
            if text is not None:
                (tmp_path / str(processor)).write_text(f"{text}\n")
        monkeypatch.setattr(processors, "_SIBLINGS", f"{tmp_path}/{{}}")
        monkeypatch.setattr(processors, "_taken", count())
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(siblings if allowed is None else allowed))

    return make


TWO_A_CORE = {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}


def test_each_thread_has_a_core_of_its_own(fake):
    fake(TWO_A_CORE)
    assert place(2) == Placement(0, (1,))


def test_without_a_number_each_core_has_a_thread(fake):
    fake({processor: str(processor) for processor in range(3)})
    assert place(None) == Placement(0, (1, 2))


def test_only_processors_that_this_thread_may_use(fake):
    fake(TWO_A_CORE, allowed={4, 5})
    assert place(2) == Placement(4, (5,))


def test_where_the_system_names_no_siblings_each_processor_is_a_core(fake):
    fake({2: None, 7: None})
    assert place(2) == Placement(2, (7,))


def test_each_call_begins_at_another_core(fake):
    fake({processor: str(processor) for processor in range(3)})
    assert [place(2) for _ in range(4)] == [
        Placement(0, (1,)),
        Placement(1, (2,)),
        Placement(2, (0,)),
        Placement(0, (1,)),
    ]


@pytest.mark.parametrize("threads", [1, 3, 4], ids=lambda threads: f"{threads} threads on 2 cores")
def test_one_thread_or_more_than_cores_are_left_to_the_system(fake, threads):
    fake(TWO_A_CORE)
    assert place(threads) is None


def test_one_core_gets_one_thread(fake):
    """ONNX Runtime would open one for each core of the machine."""
    fake(TWO_A_CORE, allowed={1, 5})
    assert place(None) == Placement(1, ())
    assert place(2) is None


def test_a_system_that_does_not_say(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert place(2) is None and place(None) is None


def test_the_caller_is_tied_and_let_go():
    before = os.sched_getaffinity(0)
    one = min(before)
    with Placement(one, ()).held():
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == before


def test_the_caller_is_let_go_after_an_exception(all_processors):
    before = os.sched_getaffinity(0)
    with pytest.raises(ValueError, match="inside"), Placement(min(before), ()).held():
        raise ValueError("inside")
    assert os.sched_getaffinity(0) == before


def test_a_processor_that_is_gone_stops_nothing():
    before, gone = os.sched_getaffinity(0), 1023
    assert not Path(f"/sys/devices/system/cpu/cpu{gone}").exists()
    with Placement(gone, ()).held():
        assert os.sched_getaffinity(0) == before


def threads_of_this_process():
    return {int(name) for name in os.listdir("/proc/self/task")}


def opened_threads(plan, threads, monkeypatch):
    """A rollout, where its backend was placed, and the threads that it has opened."""
    placed = []
    monkeypatch.setattr(
        "videossm.runtime.backends.onnxruntime.place", lambda threads: placed.append(place(threads)) or placed[-1]
    )
    before = threads_of_this_process()
    rollout = Rollout(plan, "red", threads=threads)
    next(rollout)
    return rollout, placed, threads_of_this_process() - before


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason=f"{sys.platform} does not list threads")
def test_the_threads_of_a_session_are_on_the_workers_processors(tiny_plan, all_processors, monkeypatch):
    if len(processors._cores()) < 2:
        pytest.skip("this machine has one core")
    caller = os.sched_getaffinity(0)
    _rollout, (placement,), threads = opened_threads(tiny_plan, 2, monkeypatch)
    assert placement is not None and len(placement.workers) == 1
    deadline = time.monotonic() + 60  # each is placed by itself, some time after the session has opened it
    assert threads
    while any(os.sched_getaffinity(thread) != set(placement.workers) for thread in threads):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert placement.caller not in placement.workers
    assert os.sched_getaffinity(0) == caller


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason=f"{sys.platform} does not list threads")
def test_a_process_of_one_core_opens_no_threads(tiny_plan, all_processors, monkeypatch):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # all_processors undoes it
    _rollout, placed, threads = opened_threads(tiny_plan, None, monkeypatch)
    assert (placed, threads) == ([Placement(min(os.sched_getaffinity(0)), ())], set())
