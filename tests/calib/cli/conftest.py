from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result


@pytest.fixture
def called() -> Callable[..., Result]:
    """`called(command, *arguments)`: what a command line prints and its exit code."""
    return lambda command, *arguments: CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def refused(called: Callable[..., Result]) -> Callable[..., str]:
    """The one line on stderr of a command that ends with exit code 2."""

    def call(command: Any, *arguments: object) -> str:
        result = called(command, *arguments)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert result.stderr.count("\n") == 1, f"one line, not {result.stderr!r}"
        return result.stderr.rstrip("\n")

    return call
