"""What all command lines share: a line for each wrong input, exit codes, --version, progress, JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn, TextIO

import click

from videossm.runtime.cli.interrupt import raised_interrupt
from videossm.runtime.errors import PreflightError, UserError

WRONG_INPUT = 2
_LONGEST_WORD, _LONGEST_LINE = 200, 2000  # characters of an error


class Command(click.Command):
    """A command whose `user_errors` end in one line on stderr and exit code 2, and Ctrl-C in exit code 130.

    With a parameter `as_json` it prints on stdout, which is looked at before any work is done.
    """

    user_errors: ClassVar[tuple[type[Exception], ...]] = (UserError,)

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])

    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        if sys.stderr is None:  # it was closed
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
        with raised_interrupt() as interrupt:
            try:
                code = super().main(*args, **extra)
            except (click.Abort, KeyboardInterrupt):  # click makes the first of the second, where it sees it
                _fail(interrupt.verb, interrupt.exit_code)
            except click.UsageError as error:
                help_text = f"; see {error.ctx.command_path} --help" if error.ctx else ""
                _fail(error.format_message().rstrip(".") + help_text, WRONG_INPUT)
            except PreflightError as error:
                _fail([str(problem) for problem in error.problems], WRONG_INPUT)
            except self.user_errors as error:
                _fail(str(error), WRONG_INPUT)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.params.get("as_json"):
            _require_stdout()
        return super().invoke(ctx)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), _printing_option(["--version"], "Show the version and exit.", _version)]

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        names = self.get_help_option_names(ctx)
        return _printing_option(names, "Show this message and exit.", click.Context.get_help) if names else None


def _printing_option(names: Sequence[str], text: str, content: Callable[[click.Context], str]) -> click.Option:
    """An option that prints `content(context)` and ends the command."""

    def show(context: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given and not context.resilient_parsing:
            print_text(content(context))
            context.exit()

    return click.Option(names, is_flag=True, is_eager=True, expose_value=False, help=text, callback=show)


def _version(context: click.Context) -> str:
    from importlib.metadata import version

    return f"videossm {version('videossm')}"


def print_json(values: dict[str, Any]) -> None:
    """The one object that `--json` promises on stdout."""
    print_text(json.dumps(values, indent=2))


def print_text(text: str) -> None:
    """The result on stdout. Raises UserError where it has no room."""
    _require_stdout()
    try:
        click.echo(printable(text))
    except BrokenPipeError:  # click's affair: the reader has seen enough
        raise
    except OSError as error:
        drop(sys.stdout)
        raise UserError(f"stdout: cannot write it ({error.strerror}); choose a place that has room") from error


def _require_stdout() -> None:
    if sys.stdout is None:
        raise UserError("stdout: got it closed, expected a place for the result; redirect it to a file")


def drop(stream: TextIO) -> None:
    """What `stream` still holds goes nowhere, so that the end of the process does not try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(line: str) -> None:
    """One line on stderr, for whoever waits; where it cannot be written, what was done is done all the same."""
    try:
        click.echo(printable(line), err=True)
    except OSError:
        drop(sys.stderr)


def progress(total: int | None, unit: str, initial: int = 0) -> Any:
    """A tqdm bar on stderr; nothing at all where stderr is no terminal."""
    from tqdm import tqdm

    return tqdm(total=total, initial=initial, unit=unit, disable=not sys.stderr.isatty(), dynamic_ncols=True)


def printable(text: str) -> str:
    """A terminal obeys control characters, also in the name of a plan: all but line breaks as Python writes them."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _fail(messages: str | list[str], code: int) -> NoReturn:
    for message in [messages] if isinstance(messages, str) else messages:
        say(one_line(message))
    sys.exit(code)


def one_line(message: str) -> str:
    """Without line breaks and other control characters; names and numbers without end are cut, and so is the whole."""
    words = (word if len(word) <= _LONGEST_WORD else f"{word[:40]}..{word[-18:]}" for word in message.split())
    line = printable(" ".join(words))
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 2]}.."
