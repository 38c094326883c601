"""What only a GPU can show: `pytest -m gpu`. Everything here is skipped, with a reason, where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from videossm.runtime import Plan
from videossm.runtime.driver import probe_driver

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # whose measure of an error is the tests', too


@pytest.fixture(autouse=True)
def gpu() -> Any:
    """The first GPU."""
    driver = probe_driver()
    if not driver.gpus:
        pytest.skip(f"no GPU here: {driver.problem}")
    return driver.gpus[0]


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels do not go to the user's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))


@pytest.fixture(scope="session")
def shapes_plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    """`shapes_plan(precision)`: the shipped checkpoint as ONNX graphs, made once a session; with options as
    "--backend", "tensorrt": engines that are built from those.
    """
    from videossm.export.cli import export

    folder = tmp_path_factory.mktemp("plans")
    made: dict[tuple[str, ...], Plan] = {}

    def call(source: str, *options: str) -> Plan:
        path = folder / f"{len(made)}.plan"
        with pytest.raises(SystemExit) as ended:
            export.main([source, *options, "-o", str(path)])
        assert not ended.value.code, f"videossm-export {source} {' '.join(options)}: exit code {ended.value.code}"
        return Plan.open(path)

    def build(precision: str, *target: str) -> Plan:
        key = (precision, *target)
        if key not in made:
            if target:
                plan = call(str(build(precision).path), *target)
            else:
                options = ["--precision", precision, "--lowering", "standard", "--no-verify"]
                if precision in ("int8", "fp8"):
                    options += ["--calibration-size", "2", "--calibration-chunks", "8"]
                options += ["--report", "none"]
                plan = call("shapes", *options)
            made[key] = plan
        return made[key]

    return build


@pytest.fixture
def relative_errors() -> Callable[..., list[float]]:
    """`relative_errors(reference, rollout, chunks)`: of each chunk's latents, made from the reference's state."""
    return import_module("gpu").relative_errors
