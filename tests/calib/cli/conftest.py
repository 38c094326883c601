from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from videossm.runtime import Plan
from videossm.runtime.plan import write_manifest


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


@pytest.fixture
def plan_of_engines(test_plan: Plan, tmp_path: Path) -> Plan:
    """The small plan as if TensorRT-RTX had built its graphs."""
    folder = Path(shutil.copytree(test_plan.path, tmp_path / "engines.plan"))
    values = test_plan.values() | {"backend": "tensorrt-rtx", "target": {"architectures": ["sm_89"]}}
    for name, engine in values["engines"].items():
        (folder / engine["file"]).rename(folder / f"{name}.engine")
        engine["file"] = f"{name}.engine"
    return write_manifest(folder, values)
