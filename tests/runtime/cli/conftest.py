from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def called(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`called(command, *arguments)`: exit code, stdout and stderr of a command line, in this process."""

    def call(command: Any, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            command.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def refused(called: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """The one line on stderr of a command that ends with exit code 2."""

    def call(command: Any, *arguments: object) -> str:
        code, out, err = called(command, *arguments)
        assert (code, out) == (2, ""), f"exit code {code}, stdout {out!r}, stderr {err!r}"
        assert err.count("\n") == 1, f"one line, not {err!r}"
        return err.rstrip("\n")

    return call


@pytest.fixture
def started() -> Any:
    """`started(module, *arguments)`: a command line in a process of its own, ended with the test."""
    processes = []

    def start(module: str, *arguments: object, **files: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **files}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()
