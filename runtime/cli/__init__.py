"""What all command lines share: a line for each wrong input, exit codes 0, 1, 2 and 130, progress, JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, ClassVar

import click

from videossm.runtime.errors import PreflightError, UserError

WRONG_INPUT, INTERRUPTED = 2, 130


class Command(click.Command):
    """A command whose `user_errors` end in one line on stderr and exit code 2, and Ctrl-C in exit code 130."""

    user_errors: ClassVar[tuple[type[Exception], ...]] = (UserError,)

    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except (click.Abort, KeyboardInterrupt):  # click makes the first of the second, where it is the one to see it
            _fail("interrupted", INTERRUPTED)
        except click.UsageError as error:
            help_text = f"; see {error.ctx.command_path} --help" if error.ctx else ""
            _fail(error.format_message().rstrip(".") + help_text, WRONG_INPUT)
        except PreflightError as error:
            _fail([str(problem) for problem in error.problems], WRONG_INPUT)
        except self.user_errors as error:
            _fail(str(error), WRONG_INPUT)
        sys.exit(code if isinstance(code, int) else 0)


def print_json(values: dict[str, Any]) -> None:
    """The one object that `--json` promises on stdout."""
    print_text(json.dumps(values, indent=2))


def print_text(text: str) -> None:
    """The result on stdout. Raises UserError where it has no room."""
    try:
        click.echo(text)
    except BrokenPipeError:  # the reader has left; click ends the process
        raise
    except OSError as error:
        drop_stdout()
        raise UserError(f"stdout: cannot write it ({error.strerror}); choose a place that has room") from error


def drop_stdout() -> None:
    """What stdout still holds goes nowhere, so that the end of the process does not try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str) -> None:
    """One line on stderr."""
    click.echo(line, err=True)


def progress(total: int | None, unit: str, initial: int = 0) -> Any:
    """A tqdm bar on stderr; nothing at all where stderr is no terminal."""
    from tqdm import tqdm

    return tqdm(total=total, initial=initial, unit=unit, disable=not sys.stderr.isatty(), dynamic_ncols=True)


def _fail(messages: str | list[str], code: int) -> None:
    for message in [messages] if isinstance(messages, str) else messages:
        click.echo(" ".join(message.split()), err=True)
    sys.exit(code)
