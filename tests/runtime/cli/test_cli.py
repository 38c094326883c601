"""What all command lines share: exit codes, and one line on stderr."""

from __future__ import annotations

import re
import signal
import threading
from importlib.metadata import version
from pathlib import Path

import click
import pytest

import videossm.runtime
from videossm.cost.cli import inspect
from videossm.runtime import UserError
from videossm.runtime.cli import Command
from videossm.runtime.cli.bench import bench
from videossm.runtime.cli.doctor import doctor
from videossm.runtime.cli.run import run
from videossm.runtime.errors import PreflightError, Problem


def command(error, **attributes):
    """A command that raises `error`."""
    kind = type("Kind", (Command,), attributes)

    @click.command(cls=kind)
    def failing() -> None:
        raise error

    return failing


def test_wrong_input_is_one_line_and_2(refused):
    message = "size: got 3,\nexpected 4; change it"
    assert refused(command(UserError(message))) == "size: got 3, expected 4; change it"


def test_each_problem_of_a_preflight_is_a_line(called):
    problems = [Problem("size", "3", "4", "change it"), Problem("color", "red\ngreen", "blue", "paint it")]
    lines = "size: got 3, expected 4; change it\ncolor: got red green, expected blue; paint it\n"
    assert called(command(PreflightError(problems))) == (2, "", lines)


def test_other_wrong_inputs_of_a_command(refused):
    failing = command(ValueError("size: got 3"), user_errors=(UserError, ValueError))
    assert refused(failing) == "size: got 3"


def test_ctrl_c_is_130(called):
    assert called(command(KeyboardInterrupt())) == (130, "", "\ninterrupted\n"), "click ends the line that shows ^C"


def test_an_error_of_ours_is_a_traceback():
    with pytest.raises(ZeroDivisionError):
        command(ZeroDivisionError()).main([])


@pytest.mark.parametrize(("number", "verb"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_is_128_and_its_number(called, number, verb):
    @click.command(cls=Command)
    def signalled():
        signal.raise_signal(number)

    before = signal.getsignal(number)
    assert called(signalled) == (128 + number, "", f"\n{verb}\n")
    assert signal.getsignal(number) == before, "the handler is put back"


def test_a_signal_that_is_ignored_stays_so(called):
    """As in a shell's background jobs."""

    @click.command(cls=Command)
    def signalled():
        signal.raise_signal(signal.SIGINT)
        return 5

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert called(signalled)[0] == 5
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread(called):
    """A program may call a command there, where Python takes no handlers."""
    ended = []

    def start():
        with pytest.raises(SystemExit) as caught:
            run.main(["--version"])
        ended.append(caught.value.code)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert ended == [0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("name: got \x1b[2Jx\x07, expected y", "name: got \\x1b[2Jx\\x07, expected y"),
        ("a\nb\tc \u202e", "a b c \\u202e"),
        ("got " + 100_000 * "x" + ", expected y", "got " + 40 * "x" + ".." + 17 * "x" + ", expected y"),
        ("x " * 50_000, "x " * 999 + ".."),
        ("got \u00e9\u4e16, expected y", "got \u00e9\u4e16, expected y"),
    ],
    ids=["escapes", "breaks", "long word", "long line", "letters"],
)
def test_a_line_is_for_reading(refused, given, told):
    assert refused(command(UserError(given))) == told


@pytest.mark.parametrize("tool", [run, inspect, bench, doctor], ids=lambda tool: tool.name)
def test_version(called, tool):
    assert called(tool, "--version") == (0, f"videossm {version('videossm')}\n", "")
    assert videossm.runtime.__version__ == version("videossm")
    assert called(tool, "-h") == called(tool, "--help")


@pytest.mark.parametrize("tool", [run, inspect, bench], ids=lambda tool: tool.name)
def test_usage(called, refused, tool):
    code, out, _ = called(tool, "--help")
    assert code == 0 and out.startswith("Usage: ")
    assert refused(tool).startswith("Missing argument 'PLAN'; see ")
    assert refused(tool, "a", "b").startswith("Got unexpected extra argument (b); see ")


@pytest.mark.parametrize("tool", [run, inspect, bench, doctor], ids=lambda tool: tool.name)
def test_the_document_has_every_option_and_no_other(tool):
    text = (Path(__file__).parents[3] / "docs" / "command-lines.md").read_text(encoding="utf-8")
    section = re.split(rf"## videossm-{tool.name} \[?PLAN\]?\n", text)[1].partition("\n## ")[0]
    cells = [re.split(r"(?<!\\)\|", line)[1] for line in section.splitlines() if line.startswith("| `")]
    options = {name for each in tool.params if isinstance(each, click.Option) for name in each.opts}
    assert set(re.findall(r"`(-[-a-z]+)", "".join(cells))) == options - {"--output"}, "-o stands for --output"
