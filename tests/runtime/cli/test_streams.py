"""Standard streams that are closed, full, or left by their reader: one line or silence, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RED = "a red circle moves left"
FULL = b"stdout: cannot write it (No space left on device); choose a place that has room\n"
CLOSED = b"stdout: got it closed, expected a place for the result; redirect it to a file\n"


def module_of(tool):
    return "videossm.cost.cli" if tool == "inspect" else f"videossm.runtime.cli.{tool}"


@pytest.fixture(params=["-m", "installed"])
def shell(request):
    """`shell("run", "2>&-", *arguments)`: a command with its streams redirected so, by either way to start it."""

    def call(tool, redirection, *arguments):
        start = f"import videossm.commands as c; c.{tool}()"
        way = ["-m", module_of(tool)] if request.param == "-m" else ["-c", start]
        command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, *way, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, env=environment, timeout=60)

    return call


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_help_that_has_no_room(shell, option):
    done = shell("run", ">/dev/full", option)
    assert (done.returncode, done.stderr) == (2, FULL)
    done = shell("run", ">&-", option)
    assert (done.returncode, done.stderr) == (2, CLOSED)


def test_json_without_stdout(shell, tiny_plan, tmp_path):
    """Told before any work is done."""
    words = ["--prompt", RED, "--chunks", 1, "-o", tmp_path / "out.gif"]
    done = shell("run", ">&-", tiny_plan.path, *words, "--json")
    assert (done.returncode, done.stderr) == (2, CLOSED)
    assert not (tmp_path / "out.gif").exists()
    done = shell("run", ">&-", tiny_plan.path, *words)
    assert done.returncode == 0 and (tmp_path / "out.gif").exists(), "without --json it needs none"


def test_a_table_without_stdout(shell, tiny_plan):
    done = shell("inspect", ">&-", tiny_plan.path)
    assert (done.returncode, done.stderr) == (2, CLOSED)


def test_frames_without_stdout(shell, tiny_plan):
    done = shell("run", ">&-", tiny_plan.path, "--prompt", RED, "--chunks", 1, "-o", "-")
    assert done.returncode == 2
    assert done.stderr == b"output: got -, but stdout is closed, expected a pipe or a file; redirect it\n"


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_nowhere_to_say_it(shell, tiny_plan, tmp_path, where):
    """What was done is done: the video is whole, and the exit code says so."""
    video = tmp_path / "out.y4m"
    done = shell("run", where, tiny_plan.path, "--prompt", RED, "--chunks", 2, "-o", video)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert video.read_bytes().count(b"FRAME\n") == 6 and video.read_bytes().startswith(b"YUV4MPEG2 ")


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
def test_nowhere_to_say_what_is_wrong(shell, tiny_plan, tmp_path, where):
    done = shell("run", where, tiny_plan.path, "--prompt", "a pink circle", "-o", tmp_path / "out.mp4")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_readers_that_have_left(tiny_plan, tmp_path):
    """Of stdout and stderr, before anything comes."""
    read, write = os.pipe()
    os.close(read)
    for tool, words in (("inspect", ["--json"]), ("run", ["--prompt", RED, "-o", tmp_path / "out.gif"])):
        command = [sys.executable, "-m", module_of(tool), tiny_plan.path, *words]
        done = subprocess.run([str(word) for word in command], stdout=write, stderr=write, timeout=60)
        assert done.returncode == {"inspect": 1, "run": 0}[tool]  # as of any command in a pipe, and the video is whole
    os.close(write)
