from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
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
def signalled() -> Callable[[subprocess.Popen[bytes], int], None]:
    """`signalled(process, number)`: sends the first signal, which the process catches, and waits until it has it.

    The kernel then has the default in force for the second one; two that wait at once would be one.
    """

    def caught(process: subprocess.Popen[bytes], number: int) -> bool:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)

    def signal(process: subprocess.Popen[bytes], number: int) -> None:
        assert caught(process, number)
        process.send_signal(number)
        deadline = time.monotonic() + 60
        while caught(process, number):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)

    return signal


@pytest.fixture
def started() -> Any:
    """`started(module, *arguments)`: a command line in a process of its own, ended with the test.

    `started("-c", script, *arguments)` starts one by a script.
    """
    processes = []

    def start(module: str, *arguments: object, **files: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, *([module] if module == "-c" else ["-m", module]), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **files}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()
