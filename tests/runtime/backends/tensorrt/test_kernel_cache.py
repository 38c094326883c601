"""The file of compiled kernels: what a second start finds in it, and that nothing depends on it."""

from __future__ import annotations

import errno
import itertools
import os
import stat

import numpy as np
import pytest

from videossm.runtime import Rollout
from videossm.runtime.backends.tensorrt.kernel_cache import cache_file

RED = "a red circle moves left"
CHUNKS = 8  # the window is full by then, so every engine has run


@pytest.fixture
def plan(tiny_plan, engine_plan):
    return engine_plan(tiny_plan)


@pytest.fixture
def start(tensorrt):
    """`start(plan, refuses="", rtx=True)` as a new process would: what it made, its notes, TensorRT."""

    def run(plan, refuses="", rtx=True):
        trt = tensorrt(rtx=rtx)
        trt.options.refuses = refuses
        rollout = Rollout(plan, RED)
        frames = [chunk.frames for chunk in itertools.islice(rollout, CHUNKS)]
        return frames, rollout.device_usage.notes, trt

    return run


@pytest.fixture
def expected(tiny_plan):
    return [chunk.frames for chunk in itertools.islice(Rollout(tiny_plan, RED, threads=1), CHUNKS)]


def same(got, expected):
    return len(got) == len(expected) and all(map(np.array_equal, got, expected))


def test_a_second_start_compiles_nothing(plan, start, expected):
    first, notes, trt = start(plan)
    (cache,) = trt.caches
    assert same(first, expected) and not notes and len(cache.compiled) == 2 * 4, "one cache for four engines"
    file = cache_file(plan.path)
    assert file.read_text().split() == ["kernels", *cache.compiled]
    written = file.stat()
    second, notes, trt = start(plan)
    (cache,) = trt.caches
    assert same(second, expected) and not notes and not cache.compiled
    assert os.path.samestat(file.stat(), written), "nothing new, so it is not written"


def test_the_file_is_the_plans_own_and_the_users_alone(plan, tiny_plan, engine_plan, start, caches):
    other = engine_plan(tiny_plan, name="other")
    start(plan), start(other)
    files = {cache_file(plan.path), cache_file(other.path)}
    assert len(files) == 2 and files == set((caches / "videossm").iterdir()), "and nothing temporary is left"
    assert stat.S_IMODE((caches / "videossm").stat().st_mode) == 0o700


@pytest.mark.parametrize("value", [None, "", "relative"])
def test_without_a_folder_of_the_users_choice_it_is_the_usual_one(plan, monkeypatch, tmp_path, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_file(plan.path).parent == tmp_path / ".cache" / "videossm"


def test_full_tensorrt_has_none(plan, start, expected, caches):
    frames, notes, _ = start(plan, rtx=False)
    assert same(frames, expected) and not notes and not list(caches.iterdir())


def test_kernels_are_saved_after_an_engines_first_run_and_no_other(plan, tensorrt, monkeypatch):
    """The emulated cache refuses to be read during a capture; the memory first runs when the window is full."""
    trt = tensorrt(rtx=True)
    saved = []
    serialize = trt.IRuntimeCache.serialize
    monkeypatch.setattr(trt.IRuntimeCache, "serialize", lambda cache: saved.append(1) or serialize(cache))
    rollout = Rollout(plan, RED)
    counts = [(next(rollout), len(saved))[1] for _ in range(20)]
    assert counts[0] == 3 and counts[-1] == 4 and trt.cuda.graphs


@pytest.mark.parametrize("content", [b"", b"of another GPU"], ids=["empty", "other"])
def test_a_file_that_is_refused_is_made_anew(plan, start, expected, content):
    file = cache_file(plan.path)
    file.parent.mkdir()
    file.write_bytes(content)
    frames, notes, _ = start(plan)
    assert same(frames, expected) and notes == (
        f"kernels are compiled anew ({file} is refused: TensorRT said nothing)",
    )
    frames, notes, trt = start(plan)
    assert same(frames, expected) and not notes and not trt.caches[0].compiled


@pytest.mark.parametrize(
    "call",
    ["create_runtime_config", "create_runtime_cache", "set_runtime_cache", "a context with a cache", "serialize"],
)
def test_without_what_tensorrt_rtx_refuses(plan, start, expected, call):
    frames, (note,), _ = start(plan, call)
    assert same(frames, expected)
    assert note.startswith("kernels are compiled at every start (no ") and f"[{call}] it failed" in note


def test_a_file_where_the_folder_should_be(plan, start, expected, caches):
    (caches / "videossm").write_bytes(b"")
    frames, notes, _ = start(plan)
    assert same(frames, expected)
    assert notes == (f"kernels are compiled at every start (cannot write {cache_file(plan.path)}: File exists)",)


def test_a_file_that_cannot_be_read_is_replaced(plan, start, expected, monkeypatch):
    start(plan)
    file = cache_file(plan.path)
    file.unlink()
    file.symlink_to(file.name)  # for whoever may read everything, too
    frames, notes, _ = start(plan)
    assert same(frames, expected) and len(notes) == 1 and f"anew (cannot read {file}: " in notes[0]
    assert not start(plan)[1]


def test_a_full_disk(plan, start, expected, caches, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    frames, (note,), _ = start(plan)
    assert same(frames, expected) and note.endswith(".rtxcache: No space left on device)")
    assert not list((caches / "videossm").iterdir())


@pytest.mark.parametrize("why", ["no-manifest", "no-home"])
def test_no_place_for_a_file(plan, start, expected, monkeypatch, why):
    if why == "no-manifest":
        (plan.path / "manifest.json").unlink()
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr("pathlib.Path.home", home)
    frames, (note,), trt = start(plan)
    assert same(frames, expected) and not trt.caches
    assert note.startswith("kernels are compiled at every start (no place for a cache: ")
