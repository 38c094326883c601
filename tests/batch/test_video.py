"""One row's video: the bytes of videossm-run, whatever was killed on the way, and nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from videossm.batch import Folder, make_video, read_rows
from videossm.batch.video import WORK
from videossm.runtime import LoadedPlan, UserError
from videossm.runtime.cli.run import run
from videossm.runtime.sinks import Sink

TIMED = [{"start_s": 0, "prompt": "a red circle"}, {"start_s": 1.5, "prompt": "a blue square"}]
ROW = {"id": "a", "prompt": TIMED, "seed": 7, "seconds": 4}
CHUNKS = 11
WORKER = """
import sys, time
from videossm.batch import Folder, make_video, read_rows
from videossm.runtime import LoadedPlan, Plan
from videossm.runtime.sinks import Sink
write, written = Sink.write, []
def stuck_at_the_eighth(sink, frames):
    written.append(1)
    write(sink, frames) if len(written) < 8 else time.sleep(600)
Sink.write = stuck_at_the_eighth
plan = Plan.open(sys.argv[1])
(line, request), = read_rows([sys.argv[2].encode()], plan)
make_video(LoadedPlan(plan, threads=1), request, Folder(sys.argv[3]))
"""


@pytest.fixture
def loaded(tiny_plan):
    with LoadedPlan(tiny_plan) as loaded:
        yield loaded


def request_of(plan, **changes):
    ((_, request),) = read_rows([json.dumps({**ROW, **changes}).encode()], plan)
    return request


@pytest.fixture
def expected(tiny_plan, tmp_path):
    """The bytes that videossm-run writes."""
    file = tmp_path / "expected.mp4"
    prompts = ["--prompt", TIMED[0]["prompt"], "--prompt-at", f"1.5:{TIMED[1]['prompt']}"]
    with pytest.raises(SystemExit) as ended:
        run.main([str(tiny_plan.path), *prompts, "--seed", "7", "--seconds", "4", "-o", str(file)])
    assert not ended.value.code
    return file.read_bytes()


def work_of(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / WORK).glob("*/*"))


def test_the_file_is_that_of_videossm_run(tiny_plan, loaded, expected, tmp_path):
    result = make_video(loaded, request_of(tiny_plan), Folder(str(tmp_path / "out")))
    assert (tmp_path / "out" / "a.mp4").read_bytes() == expected
    assert json.loads((tmp_path / "out" / "a.json").read_text()) == result
    assert (result["chunks"], result["frames"], result["seeds"], result["attempts"]) == (CHUNKS, 33, [7], [0])
    assert result["prompts"] == TIMED
    assert work_of(tmp_path / "out") == [], "what it kept is gone"


def test_many_rows_share_the_engines(tiny_plan, loaded, expected, tmp_path):
    folder = Folder(str(tmp_path / "out"))
    make_video(loaded, request_of(tiny_plan, id="b", seed=3), folder)
    make_video(loaded, request_of(tiny_plan), folder)
    assert (tmp_path / "out" / "a.mp4").read_bytes() == expected, "nothing of the row before is left"


def test_nothing_is_made_twice(tiny_plan, loaded, tmp_path, monkeypatch):
    folder = Folder(str(tmp_path / "out"))
    first = make_video(loaded, request_of(tiny_plan), folder)
    before = (tmp_path / "out" / "a.mp4").stat()
    monkeypatch.setattr(Sink, "write", None)
    assert make_video(loaded, request_of(tiny_plan), folder) == first
    assert (tmp_path / "out" / "a.mp4").stat() == before
    with pytest.raises(UserError, match=r"id: got a, whose video in \S+ is of another prompt"):
        make_video(loaded, request_of(tiny_plan, seed=8), folder)


@pytest.mark.parametrize("where", ["write", "after"])
@pytest.mark.parametrize("chunk", [0, 4, CHUNKS - 1])
def test_it_goes_on_after_an_end_in_the_midst(tiny_plan, loaded, expected, tmp_path, monkeypatch, chunk, where):
    """Ended before the frames of `chunk` are kept, or after that and before its state."""
    folder, calls = Folder(str(tmp_path / "out")), []
    write = Sink.write if where == "write" else Folder.writing

    def failing(self, *arguments):
        name = "state" if where == "after" and "safetensors" in str(arguments[0]) else where
        calls.append(name)
        if calls.count("write" if where == "write" else "state") > chunk:
            raise RuntimeError("killed")
        return write(self, *arguments)

    monkeypatch.setattr(*((Sink, "write") if where == "write" else (Folder, "writing")), failing)
    with pytest.raises(RuntimeError, match="killed"):
        make_video(loaded, request_of(tiny_plan), folder)
    monkeypatch.undo()
    assert not (tmp_path / "out" / "a.mp4").exists()
    result = make_video(loaded, request_of(tiny_plan), folder)
    assert (tmp_path / "out" / "a.mp4").read_bytes() == expected
    assert result["attempts"] == [0, chunk], "no more than the chunk in hand is made again"


@pytest.mark.parametrize("damage", ["state", "frames"])
def test_what_a_crash_has_damaged_is_made_anew(tiny_plan, loaded, expected, tmp_path, monkeypatch, damage):
    folder = Folder(str(tmp_path / "out"))
    monkeypatch.setattr(Folder, "put", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        make_video(loaded, request_of(tiny_plan), folder)
    monkeypatch.undo()
    (state,) = (tmp_path / "out" / WORK).glob("*/*.safetensors")
    if damage == "state":
        state.write_bytes(state.read_bytes()[:-9])
    else:
        (state.parent / "00000003.rgb").unlink()
    assert make_video(loaded, request_of(tiny_plan), folder)["attempts"] == [0, 0]
    assert (tmp_path / "out" / "a.mp4").read_bytes() == expected


@pytest.mark.parametrize("damaged", [False, True])
def test_an_end_between_two_states(tiny_plan, loaded, expected, tmp_path, monkeypatch, damaged):
    """The state after chunk 4 is written and that after chunk 3 not yet removed: the newest that is whole counts."""
    folder, remove = Folder(str(tmp_path / "out")), Folder.remove

    def failing(self, name):
        if name.endswith("00000003.safetensors"):
            raise RuntimeError("killed")
        remove(self, name)

    monkeypatch.setattr(Folder, "remove", failing)
    with pytest.raises(RuntimeError, match="killed"):
        make_video(loaded, request_of(tiny_plan), folder)
    monkeypatch.undo()
    older, newer = sorted((tmp_path / "out" / WORK).glob("*/*.safetensors"))
    assert older.name < newer.name
    if damaged:
        newer.write_bytes(newer.read_bytes()[:-9])
    assert make_video(loaded, request_of(tiny_plan), folder)["attempts"] == [0, 4 if damaged else 5]
    assert (tmp_path / "out" / "a.mp4").read_bytes() == expected
    assert not (tmp_path / "out" / WORK).exists() or not list((tmp_path / "out" / WORK).iterdir())


def test_a_worker_that_is_killed(tiny_plan, loaded, expected, tmp_path):
    """SIGKILL, wherever it stands: the same file, and no more than the chunk in hand is made again."""
    folder = tmp_path / "out"
    command = [sys.executable, "-c", WORKER, str(tiny_plan.path), json.dumps(ROW), str(folder)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while sum(name.endswith(".rgb") for name in work_of(folder)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = sum(name.endswith(".rgb") for name in work_of(folder))
    result = make_video(loaded, request_of(tiny_plan), Folder(str(folder)))
    assert (folder / "a.mp4").read_bytes() == expected
    assert result["attempts"] in ([0, kept - 1], [0, kept])
    assert sorted(path.name for path in folder.iterdir() if path.name != WORK) == ["a.json", "a.mp4"]


def test_an_object_store(tiny_plan, loaded, expected, monkeypatch):
    folder = Folder("memory://bucket/videos")
    put = Folder.put
    monkeypatch.setattr(Folder, "put", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        make_video(loaded, request_of(tiny_plan), folder)
    monkeypatch.setattr(Folder, "put", put)
    assert make_video(loaded, request_of(tiny_plan), folder)["attempts"] == [0, CHUNKS], "nothing is made again"
    assert folder.read("a.mp4") == expected
    assert folder.names() >= {"a.json", "a.mp4"}
