"""`videossm-export` as a user meets it: what it writes, and one line for everything wrong."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from videossm.export.cli import export
from videossm.models.videossm.checkpoint import save_checkpoint
from videossm.models.videossm.model import VideoModel, random_model
from videossm.models.videossm.presets import test as small_preset
from videossm.runtime import Plan


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def refused(result: Result) -> str:
    """The one line on stderr of a refused command."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture
def older(small_plan_in: Callable[[str], Plan], tmp_path: Path) -> Path:
    """A plan that lies where the new one shall."""
    return Path(shutil.copytree(small_plan_in("contrib").path, tmp_path / "engine.plan"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(random_model(small_preset()), path)
    return path


def test_exports_and_verifies_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine.plan"
    result = invoke(checkpoint, "-o", out, "--json", "--verify-chunks", 5)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert len(report["chunk_errors"]) == 5
    assert max(report["chunk_errors"]) <= report["tolerance"] == 1e-4
    plan = Plan.open(out)
    assert report["size_bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert plan.manifest.model["name"] == "test"


def test_replaces_an_older_plan_and_leaves_no_debris(checkpoint: Path, older: Path, tmp_path: Path) -> None:
    assert Plan.open(older).manifest.stream.width == 48
    assert invoke(checkpoint, "-o", older, "--force", "--no-verify", "--width", 64).exit_code == 0
    assert Plan.open(older).manifest.stream.width == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.plan", "model.safetensors"]


def test_an_older_plan_stays_without_force(checkpoint: Path, older: Path) -> None:
    before = Plan.open(older).identity
    message = refused(invoke(checkpoint, "-o", older))
    assert message == (
        f"output: got {older}, which is there already, expected a new name; choose another -o, "
        "or add --force to replace it"
    )
    assert Plan.open(older).identity == before


def test_dry_run_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    result = invoke(checkpoint, "-o", tmp_path / "engine.plan", "--dry-run")
    assert result.exit_code == 0
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "checkpoint: got nothing, which is neither a checkpoint nor a preset"),
        (["videossm-1.3b"], "checkpoint: got preset videossm-1.3b, which ships no weights"),
        (["test", "--precision", "fp12"], "--precision: got fp12, expected one of fp32, fp16"),
        (["test", "--backend", "openvino"], "--backend: got openvino, expected one of onnxruntime"),
        (["test", "--lowering", "loops"], "--lowering: got loops, expected one of contrib, standard, native, plugin"),
        (["test", "--opset", "12"], "--opset: got 12, expected 23 to 25"),
        (["shapes", "--set", "layers=1"], "layers: got it with a checkpoint's weights"),
        (["test", "--random-weights", "--height", "50"], "height: got 50, expected a multiple of 16"),
        (["test", "--random-weights", "--width", "-16"], "width: got -16, expected at least 1"),
        (["test", "--random-weights", "--set", "window_frames=4"], "window_frames: got 4, expected a multiple of"),
        (["test", "--set", "height=32", "--set", "height=48"], "--set: got height twice, expected it once; leave one"),
        (["test", "--set", "height=32", "--height", "48"], "--set: got height twice, expected it once; leave one out"),
        (["test", "--set", "height"], "--set: got 'height', expected NAME=VALUE, as window_frames=12; change it"),
        (["test", "--random-weights", "--set", "hight=32"], "--set: got hight, expected one of height, width, batch, "),
        (["test", "--random-weights", "--verify-chunks", "0"], "--verify-chunks: got 0, expected 1 or more"),
        (["test", "--random-weights", "-o", "no/such/folder.plan"], "whose folder does not exist"),
        (["test", "--random-weights", "-o", "."], "which exists and is no plan"),
        (["test", "--wrong"], "No such option"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a refusal that fails must have nothing to overwrite
    assert message in refused(invoke(*arguments))


def test_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "expected it; pip install 'videossm[rtx]'" in refused(invoke("test", "--backend", "tensorrt-rtx"))


def test_export_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "videossm.models.videossm.checkpoint", None)
    assert "pip install 'videossm[export]'" in refused(invoke("test", "--random-weights"))


@pytest.mark.parametrize(
    ("break_model", "message"),
    [
        (lambda model: delattr(model.transformer.head.head, "bias"), "1 missing (transformer.head.head.bias)"),
        (lambda model: model.register_buffer("extra", torch.zeros(1)), "1 unexpected (extra)"),
        (
            lambda model: setattr(model.transformer.head, "head", torch.nn.Linear(64, 3)),
            "2 mis-shaped (transformer.head.head.bias (3,) instead of (16,)",
        ),
        (
            lambda model: model.transformer.head.head.bias.data[3:4].fill_(float("nan")),
            "transformer.head.head.bias with 1 NaN or infinite values",
        ),
    ],
    ids=["missing", "unexpected", "mis-shaped", "NaN"],
)
def test_broken_checkpoints(break_model: Callable[[VideoModel], object], message: str, tmp_path: Path) -> None:
    model = random_model(small_preset())
    break_model(model)
    save_checkpoint(model, tmp_path / "model.safetensors")
    assert message in refused(invoke(tmp_path / "model.safetensors", "-o", tmp_path / "engine.plan"))
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: 4e15"), MemoryError()])
def test_a_model_beyond_the_memory(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("videossm.models.family.find_family", short)
    message = refused(invoke("test", "--random-weights", "-o", tmp_path / "engine.plan"))
    assert message == "memory: got too little for a model of this size, expected more; make it smaller"


def test_a_folder_as_checkpoint(tmp_path: Path) -> None:
    assert "which is neither a checkpoint nor a preset" in refused(invoke(tmp_path))


def test_a_name_that_no_file_can_have() -> None:
    assert "which is neither a checkpoint nor a preset" in refused(invoke("x" * 300))


def test_a_plan_that_does_not_verify_replaces_nothing(
    checkpoint: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Plan.open(older).identity
    monkeypatch.setattr("videossm.export.verify.relative_error", lambda got, expected: float("nan"))
    result = invoke(checkpoint, "-o", older, "--force", "--width", 64)
    assert result.exit_code == 1
    assert result.stderr.startswith("verify: got chunk 0: relative error nan")
    assert Plan.open(older).identity == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_leaves_the_older_plan_and_no_debris(
    checkpoint: Path, older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr("videossm.export.build.trace", lambda *arguments: signal.raise_signal(number))
    result = invoke(checkpoint, "-o", older, "--force")
    assert result.exit_code == 128 + number
    assert result.stderr.split() == ["interrupted" if number == signal.SIGINT else "terminated"]
    Plan.open(older)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.plan", "model.safetensors"]
