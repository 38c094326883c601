"""`videossm-export --precision`: plans of every precision, and one line for everything wrong with them."""

from __future__ import annotations

import json
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from videossm.calib import assess, memory, pipeline, plans, sensitivity
from videossm.export import trace
from videossm.export.build import BuildOptions, Built, build_plan
from videossm.export.cli import export
from videossm.models.family import find_family
from videossm.runtime import Plan, Rollout

QUICK = ("--calibration-size", 2, "--calibration-chunks", 2)
RANDOM = ("test", "--random-weights")
INT8 = ("--no-verify", "--precision", "int8")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The one line on stderr of a refused command."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.count("\n") == 1, f"one line, not {result.stderr!r}"
    return result.stderr.rstrip("\n")


def latents_of(plan: Plan, chunks: int = 4) -> np.ndarray:
    rollout = Rollout(plan, "red circle", 3, threads=1)
    return np.stack([rollout.sample for _ in islice(rollout, chunks)])


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `videossm-export test --random-weights` writes."""
    folder = tmp_path_factory.mktemp("plans")
    plan, canonical = folder / "fp32.plan", folder / "canonical"
    for path in (plan, canonical):
        path.mkdir()
    build_plan(find_family("test").load("test", {}, True), BuildOptions("videossm"), plan, canonical)
    return plan


@pytest.fixture
def traced(fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the tracing: it makes the same plan every time, and takes seconds."""

    def copied(deployment: Any, options: Any, folder: Path, *rest: Any) -> Built:
        return Built(Plan.open(shutil.copytree(fp32, folder, dirs_exist_ok=True)), {})

    monkeypatch.setattr("videossm.export.build.build_plan", copied)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report on three chunks of one rollout, sensitivity at the first."""
    whole = assess.report_inputs
    monkeypatch.setattr(assess, "report_inputs", lambda plan, chunks=3: whole(plan, 3))
    monkeypatch.setattr(pipeline, "report_inputs", assess.report_inputs)
    monkeypatch.setattr(assess, "ROLLOUTS", 1)
    monkeypatch.setattr(sensitivity, "STARTS", (0,))
    monkeypatch.setattr(sensitivity, "CHUNKS", 1)
    monkeypatch.setattr(assess, "WARM_CHUNKS", 1)
    monkeypatch.setattr(assess, "TIMED_CHUNKS", 2)


@pytest.fixture(scope="module")
def calibration_file(fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from videossm.calib.cli.calibrate import calibrate

    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    result = CliRunner().invoke(calibrate, [str(word) for word in (fp32, "-o", path, *QUICK)])
    assert result.exit_code == 0, result.stderr
    return path


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("precision", ["int8", "fp8", "fp16", "bf16"])
def test_every_precision_with_its_report(fp32: Path, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "engine.plan"
    options = QUICK if precision in ("int8", "fp8") else ()
    result = invoke(*RANDOM, "-o", out, "--no-verify", "--precision", precision, "--json", *options)
    assert result.exit_code == 0, result.stderr
    values, plan = json.loads(result.stdout), Plan.open(out)
    assert values["precision"] == plan.manifest.precision == precision
    assert values["size_bytes"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert values["accuracy"]["precision"] == f"{precision} against fp32"
    assert json.loads((out / "report.json").read_text())["summary"] == values["accuracy"]
    assert set(values["seconds"]) == {"export", "precision"}
    assert [path.name for path in tmp_path.iterdir()] == ["engine.plan"], "no debris"
    if precision != "bf16":  # which no CPU runs
        latents, expected = latents_of(plan), latents_of(Plan.open(fp32))
        assert 0 < np.linalg.norm(latents - expected) / np.linalg.norm(expected) < 0.2


@pytest.mark.usefixtures("traced")
def test_without_a_report(tmp_path: Path) -> None:
    out = tmp_path / "engine.plan"
    result = invoke(*RANDOM, "-o", out, "--no-verify", "--report", "none", "--precision", "int8", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert not (out / "report.json").exists()
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("kind", ["short", "full"])
def test_both_kinds_of_report(tmp_path: Path, calibration_file: Path, kind: str) -> None:
    out = tmp_path / "engine.plan"
    result = invoke(*RANDOM, "-o", out, *INT8, "--calibration", calibration_file, "--report", kind)
    assert result.exit_code == 0, result.stderr
    values = json.loads((out / "report.json").read_text())
    assert values["kind"] == kind
    assert f"{kind} report" in result.stderr
    assert ("free_running" in values, values["sensitivity"] is not None) == ((kind == "full"),) * 2


@pytest.mark.usefixtures("traced")
def test_a_long_report_is_announced(tmp_path: Path, calibration_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, so that --json has stdout for itself."""
    monkeypatch.setattr("videossm.calib.progress.LONG_S", 0)
    options = ("--calibration", calibration_file, "--json")
    result = invoke(*RANDOM, "-o", tmp_path / "engine.plan", *INT8, *options)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["accuracy"]
    assert re.fullmatch(r"report: about \d+ seconds on this machine\n", result.stderr)


@pytest.mark.usefixtures("traced")
def test_no_plan_is_opened_twice(tmp_path: Path, calibration_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, by the fixture that stands in for tracing: opening hashes every file."""
    opened: list[Path] = []
    whole = Plan.open

    def counted(path: Path) -> Plan:
        opened.append(path)
        return whole(path)

    monkeypatch.setattr(Plan, "open", staticmethod(counted))
    result = invoke(*RANDOM, "-o", tmp_path / "engine.plan", "--precision", "int8", "--calibration", calibration_file)
    assert result.exit_code == 0, result.stderr
    assert len(opened) == 1


@pytest.mark.usefixtures("traced")
def test_a_plan_with_a_report_is_replaced_by_one_without(tmp_path: Path) -> None:
    out = tmp_path / "engine.plan"
    assert invoke(*RANDOM, "-o", out, "--no-verify", "--precision", "fp16").exit_code == 0
    assert (out / "report").is_dir()
    assert invoke(*RANDOM, "-o", out, "--force", "--no-verify").exit_code == 0
    assert not (out / "report").exists()
    assert Plan.open(out).manifest.precision == "fp32"


@pytest.mark.usefixtures("traced")
def test_a_calibration_is_used_again(tmp_path: Path, calibration_file: Path) -> None:
    """`videossm-calibrate` and export record the same; given either file, the engines are the same bytes."""
    given: dict[str, tuple[object, ...]] = {
        "recorded": QUICK,
        "calibrated": ("--calibration", calibration_file),
        "again": ("--calibration", tmp_path / "recorded" / "calibration.json"),
    }
    files = []
    for name, options in given.items():
        out = tmp_path / name
        result = invoke(*RANDOM, "-o", out, "--no-verify", "--report", "none", "--precision", "int8", *options)
        assert result.exit_code == 0, result.stderr
        files.append(Plan.open(out).manifest.files)
    assert files[0] == files[1] == files[2]


@pytest.mark.usefixtures("traced")
def test_a_budget(tmp_path: Path, calibration_file: Path) -> None:
    out = tmp_path / "engine.plan"
    options = ("--precision", "int8", "--calibration", calibration_file, "--max-error", 0.001)
    result = invoke(*RANDOM, "-o", out, "--no-verify", "--json", *options)
    assert result.exit_code == 0, result.stderr
    table = json.loads((out / "report.json").read_text())["sensitivity"]
    back = [layer for layer in table["layers"] if layer["kept"] == "fp32"]
    assert back and table["budget"] == 0.001
    assert table["fallback"][0]["error_after"] <= 0.001 < table["fallback"][0]["error_before"]
    assert json.loads(result.stdout)["accuracy"]["layers kept back"] == f"{len(back)} of {len(table['layers'])}"


def test_a_large_model_from_end_to_end(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, verified, smoothed, quantised with weights beside the graphs; rolls out as with weights inside."""
    options = ("--precision", "int8", "--report", "none", "--smoothquant", 0.5, *QUICK)
    for module in (trace, plans):
        monkeypatch.setattr(module, "INLINE_BYTES", 0)
    out = tmp_path / "outside.plan"
    result = invoke(*RANDOM, "-o", out, "--verify-chunks", 4, *options)
    assert result.exit_code == 0, result.stderr
    outside = Plan.open(out)
    assert {f"{name}.onnx.data" for name in ("text_encoder", "step", "decoder")} < set(outside.manifest.files)
    monkeypatch.undo()
    request.getfixturevalue("traced")
    assert invoke(*RANDOM, "-o", tmp_path / "inside.plan", "--no-verify", *options).exit_code == 0
    assert np.array_equal(latents_of(outside, 5), latents_of(Plan.open(tmp_path / "inside.plan"), 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calibration-size", "8"], "--calibration-size: got it with fp32, expected --precision int8 or fp8; leave"),
        (["--report", "full"], "--report: got full with fp32, expected another --precision, which a report compares"),
        (["--precision", "int8", "--report", "long"], "--report: got long, expected one of short, full, none; choose"),
        (["--calibration", "x.json"], "--calibration: got it with fp32, expected --precision int8 or fp8; leave it"),
        (["--max-error", "0.1"], "--max-error: got it with fp32, expected --precision int8 or fp8; leave it out"),
        (["--precision", "fp16", "--quantize-attention"], "--quantize-attention: got it with fp16, expected"),
        (["--precision", "bf16", "--calibration-method", "max"], "--calibration-method: got it with bf16, expected"),
        (["--precision", "fp8", "--smoothquant", "0.5"], "--smoothquant: got it with fp8, expected int8"),
        (["--precision", "fp16", "--smoothquant", "0"], "--smoothquant: got it with fp16, expected int8"),
        (
            ["--precision", "int8", "--calibration", "x.json", "--calibration-size", "8"],
            "--calibration-size: got --calibration as well, expected one of them; leave one out",
        ),
        (
            ["--precision", "int8", "--calibration", "x.json", "--smoothquant", "0"],
            "--smoothquant: got --calibration as well, expected one of them; leave one out",
        ),
        (["--precision", "int8", "--max-error", "0"], "--max-error: got 0, expected more than 0, as 0.05; change it"),
        (["--precision", "int8", "--max-error", "-1"], "--max-error: got -1, expected more than 0"),
        (["--precision", "int8", "--max-error", "nan"], "--max-error: got nan, expected more than 0"),
        (["--precision", "int8", "--max-error", "inf"], "--max-error: got inf, expected more than 0"),
        (["--precision", "int8", "--calibration-chunks", "0"], "--calibration-chunks: got 0, expected 1 or more"),
        (["--precision", "int8", "--calibration", "x.json"], "calibration: got x.json, which cannot be read"),
        (["--precision", "int8", "--calibration-prompts", "x.txt"], "--calibration-prompts: got x.txt, which does not"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_told_before_anything_is_made(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("videossm.export.build.build_plan", lambda *a: pytest.fail("nothing is traced"))
    assert refused(*RANDOM, *arguments).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_for_another_precision(tmp_path: Path, calibration_file: Path) -> None:
    options = ("-o", tmp_path / "engine.plan", "--precision", "fp8", "--calibration", calibration_file)
    assert refused(*RANDOM, *options).startswith("--calibration: got scales for int8, expected fp8; change --precision")


@pytest.mark.parametrize("scale", ["0", "0.0", "-0.01", "NaN", "Infinity", "1e999", "null", '"1"'])
def test_a_scale_that_is_none(tmp_path: Path, calibration_file: Path, scale: str) -> None:
    values = json.loads(calibration_file.read_text())
    values["tensors"]["step"]["gelu"]["scale"] = "SCALE"
    (tmp_path / "calibration.json").write_text(json.dumps(values).replace('"SCALE"', scale))
    options = ("-o", tmp_path / "engine.plan", "--precision", "int8", "--calibration", tmp_path / "calibration.json")
    line = refused(*RANDOM, *options)
    assert line.startswith("calibration: ") and line.endswith("; restore the file or calibrate again")
    assert "tensors.step.gelu.scale" in line or "valid JSON" in line


@pytest.mark.usefixtures("traced")
def test_a_calibration_of_another_plan(tmp_path: Path, calibration_file: Path) -> None:
    values = json.loads(calibration_file.read_text())
    values["source"]["engines"]["step"] = 64 * "0"
    (tmp_path / "other.json").write_text(json.dumps(values))
    line = refused(*RANDOM, "-o", tmp_path / "engine.plan", *INT8, "--calibration", tmp_path / "other.json")
    assert line.startswith("calibration: source.engines.step: got sha256 0000000000000000.., expected ")
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.usefixtures("traced")
def test_a_calibration_of_another_model(tmp_path: Path, calibration_file: Path) -> None:
    values = json.loads(calibration_file.read_text())
    values["source"]["name"] = "shapes"
    (tmp_path / "other.json").write_text(json.dumps(values))
    line = refused(*RANDOM, "-o", tmp_path / "engine.plan", *INT8, "--calibration", tmp_path / "other.json")
    assert line.startswith("calibration: got one of the plan 'shapes', expected one of 'test'")


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("content", "message"),
    [("", "without any, expected one a line; add some"), ("red\na red zebra\n", "zebra")],
    ids=["empty", "unknown word"],
)
def test_prompts_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "prompts.txt").write_text(content)
    options = ("-o", tmp_path / "engine.plan", *INT8, "--calibration-prompts", tmp_path / "prompts.txt")
    assert message in refused(*RANDOM, *options)
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.usefixtures("traced")
def test_memory_that_is_short_leaves_the_older_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "engine.plan"
    assert invoke(*RANDOM, "-o", out, "--no-verify").exit_code == 0
    before = Plan.open(out).identity
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    assert refused(*RANDOM, "-o", out, "--force", *INT8).startswith(
        "memory: got 0.0 GB free, expected about 0.5 GB to calibrate"
    )
    assert Plan.open(out).identity == before


def test_an_onnx_runtime_that_cannot_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videossm.export.target.has_later_runtime", lambda: False)
    line = refused(*RANDOM, "--precision", "int8")
    assert line.startswith("--precision: got int8 with an ONNX Runtime that cannot run it, expected 1.24 or later")


def test_dry_run_says_the_precision_and_makes_nothing(tmp_path: Path) -> None:
    result = invoke(*RANDOM, "-o", tmp_path / "engine.plan", "--precision", "int8", "--dry-run")
    assert result.exit_code == 0, result.stderr
    more = "It would record scales over 8 rollouts of 24 chunks and add a short report"
    assert result.stderr.rstrip().endswith(f"onnxruntime, int8. {more}")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_with_scales_and_without_a_report(tmp_path: Path, calibration_file: Path) -> None:
    options = ("--precision", "int8", "--calibration", calibration_file, "--report", "none", "--dry-run")
    line = invoke(*RANDOM, "-o", tmp_path / "engine.plan", *options).stderr
    assert line.rstrip().endswith(f". It would take the scales from {calibration_file} and add no report")
    line = invoke(*RANDOM, "-o", tmp_path / "engine.plan", "--precision", "fp16", "--dry-run").stderr
    assert line.rstrip().endswith("fp16. It would add a short report")
