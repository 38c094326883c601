"""`videossm-export --backend tensorrt-rtx` as a user meets it, on a machine without a GPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from videossm.export.cli import export
from videossm.export.tensorrt import build
from videossm.runtime import Plan
from videossm.runtime.errors import BackendError

pytest.importorskip("tensorrt_rtx_bindings", reason="needs pip install 'videossm[rtx]'")

RTX = ("--backend", "tensorrt-rtx")
RANDOM = ("test", "--random-weights")
ADA = (*RTX, "--gpu-arch", "sm_89")
LIMIT_S = 60  # of a subprocess


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The one line on stderr of a refused command."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.count("\n") == 1, f"one line, not {result.stderr!r}"
    return result.stderr.rstrip("\n")


@pytest.fixture
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videossm.export.build.build_plan", lambda *a: pytest.fail("nothing is traced"))
    monkeypatch.setattr(build.EngineBuilder, "build", lambda *a: pytest.fail("nothing is built"))


def one_byte(self: Any, name: str, spec: Any, graph: Path, engine: Path, has_plugins: bool, tf32: bool) -> bool:
    """An engine, built at once."""
    engine.write_bytes(b"x")
    return True


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of one byte: for what happens around them."""
    monkeypatch.setattr(build.EngineBuilder, "build", one_byte)


def test_from_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "engine.plan"
    options = ("--precision", "fp16", "--report", "none", *ADA, "--gpu-arch", "sm_120", "--verify-chunks", 2)
    result = invoke(*RANDOM, *options, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    values, plan = json.loads(result.stdout), Plan.open(out)
    assert plan.manifest.target is not None and plan.manifest.target.architectures == ("sm_89", "sm_120")
    assert (plan.manifest.precision, plan.manifest.lowering, values["lowering"]) == ("fp16", "standard", "standard")
    assert len(values["chunk_errors"]) == 2, "the graphs were verified"
    assert set(values["seconds"]) == {"export", "verify", "precision", "build"}
    engines = plan.manifest.engines
    assert values["engines"].keys() == values["commands"].keys() == engines.keys()
    assert values["engines"]["step"]["size_bytes"] == (out / "step.engine").stat().st_size
    assert values["commands"]["step"].startswith("tensorrt_rtx --onnx=onnx.plan/step.onnx --saveEngine=step.engine ")
    assert not list(out.glob("*.onnx*")), "graphs are not part of it"
    assert [path.name for path in tmp_path.iterdir()] == ["engine.plan"], "no debris"


@pytest.mark.usefixtures("no_compiler")
def test_from_a_plan_of_graphs(shapes_plan: Plan, in_precision: Callable[[Plan, str], Plan], tmp_path: Path) -> None:
    source, out = in_precision(shapes_plan, "int8"), tmp_path / "engine.plan"
    result = invoke(source.path, *ADA, "--workspace", 64, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert Plan.open(out).manifest.precision == "int8"
    lines = result.stderr.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["text_encoder", "turn", "step", "memory", "decoder"]
    assert lines[5] == "by hand:"
    assert lines[8] == (
        f"tensorrt_rtx --onnx={source.path}/memory.onnx --saveEngine=memory.engine --skipInference --noTF32 "
        "--computeCapabilities=89 --memPoolSize=workspace:64M"
    )
    assert "step.onnx" not in result.stderr, "it has zero points, so the tool would refuse it as it is"
    assert lines[-1].startswith(f"{out}: ")


@pytest.mark.usefixtures("nothing_is_made")
def test_a_dry_run(shapes_plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "engine.plan"
    for source in (RANDOM, (shapes_plan.path,)):
        result = invoke(*source, *RTX, "-o", out, "--dry-run")
        assert result.exit_code == 0, result.stderr
        assert result.stderr.startswith(f"would write {out}: ") and "tensorrt-rtx" in result.stderr
    assert not out.exists()


def test_a_dry_run_asks_the_parser_and_for_room(
    shapes_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videossm.runtime.backends.tensorrt.preflight.parse_network", lambda *_: (None, ["a node"]))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    result = invoke(shapes_plan.path, *RTX, "-o", tmp_path / "engine.plan", "--dry-run")
    lines = result.stderr.splitlines()
    assert result.exit_code == 2 and len(lines) == 6
    assert lines[0].startswith("text_encoder (text_encoder.onnx): got a node, expected what the parser takes")
    assert lines[5].startswith(f"disk at {tmp_path}: got 0.00 GB free, expected at least ")


@pytest.mark.usefixtures("nothing_is_made")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*RTX, "--gpu-arch", "sm_90"), "--gpu-arch: got sm_90 for tensorrt-rtx, expected one of sm_80, sm_86, sm_89"),
        ((*RTX, "--gpu-arch", "sm_86", "--precision", "fp8"), "precision: got fp8 on sm_86, expected sm_89 or later"),
        ((*RTX, "--lowering", "plugin"), "lowering: got plugin for tensorrt-rtx, which takes no plugins, expected "),
        ((*RTX, "--lowering", "contrib"), "lowering: got contrib for tensorrt-rtx"),
        ((*RTX, "--plugins", "x.so"), "--plugins: got it with tensorrt-rtx, expected --backend tensorrt; leave it out"),
        ((*RTX, "--strip-weights"), "--strip-weights: got it without a GPU, expected one"),
        (("--gpu-arch", "sm_89"), "--gpu-arch: got it with onnxruntime, expected --backend tensorrt-rtx; leave it"),
        (("--lowering", "plugin"), "--lowering: got plugin with onnxruntime, expected contrib, standard or native"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_refused_before_anything_is_made(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert refused(*RANDOM, *options, "-o", tmp_path / "engine.plan").startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_is_made")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--backend: got onnxruntime with a plan, expected tensorrt or tensorrt-rtx; choose one"),
        ((*ADA, "--height", 64), "--height: got it with a plan, whose graphs are built as they are, expected a check"),
        ((*ADA, "--precision", "int8"), "--precision: got it with a plan"),
        ((*ADA, "--no-verify"), "--no-verify: got it with a plan"),
        ((*ADA, "--report", "full"), "--report: got it with a plan"),
        ((*ADA, "--calibration-size", 2), "--calibration-size: got it with a plan"),
        ((*RTX, "--gpu-arch", "sm_75"), "--gpu-arch: got sm_75"),
        ((*RTX, "--version-compatible"), "--version-compatible: got it with tensorrt-rtx, expected --backend tensorrt"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_refused_with_a_plan(shapes_plan: Plan, options: tuple[Any, ...], message: str, tmp_path: Path) -> None:
    assert refused(shapes_plan.path, *options, "-o", tmp_path / "engine.plan").startswith(message)


@pytest.mark.usefixtures("nothing_is_made")
def test_a_plan_is_not_built_over_itself(shapes_plan: Plan) -> None:
    line = refused(shapes_plan.path, *ADA, "-o", shapes_plan.path)
    assert line.startswith("-o: got ") and "whose graphs are built, expected another name" in line
    Plan.open(shapes_plan.path)


@pytest.mark.usefixtures("no_compiler")
def test_a_plan_of_engines_is_no_source(shapes_plan: Plan, tmp_path: Path) -> None:
    assert invoke(shapes_plan.path, *ADA, "-o", tmp_path / "engine.plan").exit_code == 0
    line = refused(tmp_path / "engine.plan", *ADA, "-o", tmp_path / "other.plan")
    assert line.endswith("for tensorrt-rtx, expected one of ONNX graphs; export it with --backend onnxruntime")


def test_tensorrt_that_is_not_here(tmp_path: Path) -> None:
    """All that is missing is told at once, a line each."""
    result = invoke(*RANDOM, "--backend", "tensorrt", "-o", tmp_path / "engine.plan")
    if result.exit_code == 0:
        pytest.skip("TensorRT is here")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert "tensorrt" in lines[0] and "without a GPU" in lines[1]


def test_a_build_that_fails_leaves_the_older_plan(
    shapes_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "engine.plan"
    with monkeypatch.context() as patch:
        patch.setattr(build.EngineBuilder, "build", one_byte)
        assert invoke(shapes_plan.path, *ADA, "-o", out).exit_code == 0
    before = Plan.open(out).identity

    def fails_late(self: Any, name: str, spec: Any, graph: Path, engine: Path, has_plugins: bool, tf32: bool) -> bool:
        engine.write_bytes(b"y")
        if name == "decoder":
            raise BackendError("decoder: cannot be built: no kernel; change the options or the precision")
        return True

    monkeypatch.setattr(build.EngineBuilder, "build", fails_late)
    assert refused(shapes_plan.path, *ADA, "-o", out, "--force").startswith("decoder: cannot be built: no kernel; ")
    assert Plan.open(out).identity == before
    assert [path.name for path in tmp_path.iterdir()] == ["engine.plan"], "no debris"


def test_ctrl_c_while_tensorrt_builds(shapes_plan: Plan, tmp_path: Path) -> None:
    """In a process of its own, while its second engine is being built: exit code 130, and nothing is left."""
    command = [sys.executable, "-m", "videossm.export.cli", shapes_plan.path, *ADA, "-o", tmp_path / "engine.plan"]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    while not list(tmp_path.rglob("text_encoder.engine")):
        assert process.poll() is None and time.monotonic() < started + LIMIT_S, "the first engine was not written"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, stderr
    assert stderr.strip().endswith("interrupted")
    assert list(tmp_path.iterdir()) == []
