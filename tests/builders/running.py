"""Other programs, whose output a failing test shows."""

from __future__ import annotations

import os
import subprocess

import pytest


def run(*command: object, stdin: str | None = None, **environment: str) -> str:
    """What it prints; fails the test with that, where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, input=stdin, env={**os.environ, **environment}
    )
    if done.returncode:
        pytest.fail(f"{command[0]}: got exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout
