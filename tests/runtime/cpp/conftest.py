"""Builds runtime/cpp in folders that later runs of the tests find again, and the plans that both runtimes play."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from running import BUILDS, locked, run
from videossm_c import Library

from videossm.models.family import FAMILIES, known_family
from videossm.runtime import Plan

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "runtime" / "cpp"
Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def build(onnxruntime_root: Path) -> Callable[..., Path]:
    """`build("name", "-DOPTION=..", ..)`: builds runtime/cpp with these options, in a folder of that name."""

    def make(name: str, *options: str) -> Path:
        folder = BUILDS / "cpp" / name
        with locked(f"cpp-{name}"):
            run("cmake", "-S", SOURCE, "-B", folder, f"-DONNXRUNTIME_ROOT={onnxruntime_root}", *options)
            run("cmake", "--build", folder)
        return folder

    return make


@pytest.fixture(scope="session")
def built(build: Callable[..., Path]) -> Path:
    """The folder of a plain build, by gcc where it is there."""
    return build("release", "-DVIDEOSSM_TESTS=ON")


@pytest.fixture(scope="session")
def library(built: Path) -> Library:
    return Library(built / "libvideossm.so")


@pytest.fixture(scope="session")
def exported_plan(shared: Shared) -> Callable[..., Plan]:
    """`exported_plan("test", precision="int8")`: a preset's plan, with random weights but for `shapes`."""

    def export(preset: str, precision: str = "fp32") -> Plan:
        from videossm.export.cli import export as command

        def make(folder: Path) -> None:
            random = ["--random-weights"] if preset != "shapes" else []
            arguments = [preset, "-o", str(folder / "plan"), "--precision", precision, "--no-verify", *random]
            with contextlib.suppress(SystemExit):
                command.main(arguments)

        return Plan.open(shared(f"cpp-{preset}-{precision}", make) / "plan")

    return export


@pytest.fixture(scope="session")
def own_model_plan(shared: Shared) -> Plan:
    """That of examples/own_model.py, whose passes each keep states."""
    from videossm.export.build import BuildOptions, build_plan
    from videossm.models.scans.capture import captured_scans

    with captured_scans():
        pytest.importorskip("mamba_ssm", reason="needs mamba-ssm: make test installs it", exc_type=ImportError)
    spec = importlib.util.spec_from_file_location("own_model", ROOT / "examples" / "own_model.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def make(folder: Path) -> None:
        with TemporaryDirectory(dir=folder.parent) as canonical:
            build_plan(module.deployment(), BuildOptions("own_model:deployment"), folder, Path(canonical))

    return Plan.open(shared("cpp-own-model", make))


def small_presets() -> list[str]:
    """Of every family, so that one that is added is tested here without more: those with `test` in their names."""
    found = []
    for name in FAMILIES:
        family = known_family(name)
        assert family is not None
        presets = [preset for preset in family.presets if "test" in preset.split("-")]
        assert presets, f"{name}: no small preset with the word test in its name"
        found += presets
    return found


PLANS = (
    "by hand",
    *(f"{preset} fp32" for preset in small_presets()),
    "test int8",
    pytest.param("test fp16", marks=pytest.mark.slow),
    "shapes fp32",
    "own model",
)


@pytest.fixture(scope="session", params=PLANS)
def plan(request: pytest.FixtureRequest, build_plan: Callable[..., Plan], exported_plan: Callable[..., Plan]) -> Plan:
    """One of each kind: two streams with every kind of state, each family, each precision, with text and without."""
    if request.param == "by hand":
        return build_plan(name="cpp", batch=2, sampler="renoise", rope_frame="absolute")
    if request.param == "own model":
        return request.getfixturevalue("own_model_plan")  # type: ignore[no-any-return]
    return exported_plan(*request.param.split())
