"""What all command lines share: exit codes, and one line on stderr."""

from __future__ import annotations

import click
import pytest

from videossm.runtime import UserError
from videossm.runtime.cli import Command
from videossm.runtime.cli.bench import bench
from videossm.runtime.cli.inspect import inspect
from videossm.runtime.cli.run import run


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


def test_other_wrong_inputs_of_a_command(refused):
    failing = command(ValueError("size: got 3"), user_errors=(UserError, ValueError))
    assert refused(failing) == "size: got 3"


def test_ctrl_c_is_130(called):
    assert called(command(KeyboardInterrupt())) == (130, "", "\ninterrupted\n"), "click ends the line that shows ^C"


def test_an_error_of_ours_is_a_traceback():
    with pytest.raises(ZeroDivisionError):
        command(ZeroDivisionError()).main([])


@pytest.mark.parametrize("tool", [run, inspect, bench], ids=lambda tool: tool.name)
def test_usage(called, refused, tool):
    code, out, _ = called(tool, "--help")
    assert code == 0 and out.startswith("Usage: ")
    assert refused(tool).startswith("Missing argument 'PLAN'; see ")
    assert refused(tool, "a", "b").startswith("Got unexpected extra argument (b); see ")
