"""Other programs, whose output a failing test shows, and folders that several tests build in."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BUILDS = Path(__file__).parents[2] / "build" / "tests"  # of C++, which later runs of the tests find again


def run(*command: object, stdin: str | None = None, **environment: str) -> str:
    """What it prints; fails the test with that, where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, input=stdin, env={**os.environ, **environment}
    )
    if done.returncode:
        pytest.fail(f"{command[0]}: got exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Against other processes of the same tests, and other runs of them."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
