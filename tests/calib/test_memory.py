"""How much memory there is, as the system and its container say, and how much a plan needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from videossm.calib import memory
from videossm.calib.memory import MemoryShortageError, available_bytes, check_memory, needed_bytes

MEMINFO = "MemTotal:  100 kB\nMemAvailable:  50 kB\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """`system(name=text)`: what the system says, in files in place of its own."""

    def say(meminfo, **cgroup):
        (tmp_path / "meminfo").write_text(meminfo)
        for name, text in cgroup.items():
            (tmp_path / f"memory.{name}").write_text(text)

    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return say


@pytest.mark.parametrize(
    ("meminfo", "cgroup", "expected"),
    [
        (MEMINFO, {}, 51200),
        (MEMINFO, {"max": "max\n", "stat": "anon 10\n"}, 51200),
        (MEMINFO, {"max": "40000\n", "stat": "anon 10000\nfile 30000\n"}, 30000),
        (MEMINFO, {"max": "90000000\n", "stat": "anon 10000\n"}, 51200),
        (MEMINFO, {"max": "40000\n"}, 51200),
        (MEMINFO, {"max": "40000\n", "stat": "file 1\n"}, 51200),
        ("MemAvailable: many kB\n", {}, None),
        ("MemTotal: 100 kB\n", {"max": "40000\n", "stat": "anon 10000\n"}, 30000),
    ],
    ids=[
        "no container",
        "container without a limit",
        "container, whose file cache would give way",
        "container with a larger limit",
        "container that does not count",
        "container that counts otherwise",
        "unreadable",
        "only a container",
    ],
)
def test_what_is_free(system, meminfo, cgroup, expected):
    system(meminfo, **cgroup)
    assert available_bytes() == expected


def test_a_system_that_says_nothing(system):
    assert available_bytes() is None


def test_this_system_says_something_or_nothing():
    free = available_bytes()
    assert free is None or free > 0


def test_a_plan_needs_more_than_its_files(test_plan):
    files = sum(file.size_bytes for file in test_plan.manifest.files.values())
    assert needed_bytes(test_plan) > memory.BASE_BYTES + memory.SESSIONS * files


def test_states_of_a_large_window_count(test_plan):
    """Rings of keys and values are inputs of engines."""
    name, engine = next(iter(test_plan.manifest.engines.items()))
    first = engine.inputs[0]
    larger = first.model_copy(update={"shape": (first.shape[0], 10 * first.shape[1], *first.shape[2:])})
    changed = engine.model_copy(update={"inputs": (larger, *engine.inputs[1:])})
    engines = {**test_plan.manifest.engines, name: changed}
    plan = replace(test_plan, manifest=test_plan.manifest.model_copy(update={"engines": engines}))
    assert needed_bytes(plan) - needed_bytes(test_plan) == memory.STATES * 9 * first.size_bytes


def test_too_little_is_told_in_one_line(test_plan, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 100_000_000)
    with pytest.raises(MemoryShortageError) as error:
        check_memory(test_plan)
    assert str(error.value).startswith("memory: got 0.1 GB free, expected about 0.5 GB to calibrate and compare test;")


@pytest.mark.parametrize("free", [None, 1 << 40], ids=["unknown", "plenty"])
def test_enough_or_unknown_goes_on(test_plan, monkeypatch, free):
    monkeypatch.setattr(memory, "available_bytes", lambda: free)
    check_memory(test_plan)
