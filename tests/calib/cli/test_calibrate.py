"""`videossm-calibrate` as a user meets it: the file it writes, and one line for everything wrong."""

from __future__ import annotations

import json
import signal
import sys
import tempfile

import numpy as np
import onnx
import pytest

from videossm.calib import memory, plans
from videossm.calib.calibration import Calibration
from videossm.calib.cli.calibrate import calibrate
from videossm.calib.linears import find_linears
from videossm.calib.plans import write_half
from videossm.runtime import Plan

QUICK = ("--calibration-size", 2, "--calibration-chunks", 1)
FFN = "transformer.blocks.1.ffn.0"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_writes_the_scales_of_a_plan(called, test_plan, tmp_path, precision):
    out = tmp_path / "scales.json"
    result = called(calibrate, test_plan.path, "-o", out, "--precision", precision, "--json", *QUICK)
    assert result.exit_code == 0, result.stderr
    calibration = Calibration.load(out)
    calibration.check(test_plan)
    values = json.loads(result.stdout)
    assert values.pop("seconds") > 0
    tensors = sum(len(by_name) for by_name in calibration.tensors.values())
    assert values == {
        "calibration": str(out),
        "precision": precision,
        "tensors": tensors,
        "rollouts": 2,
        "chunks": 1,
    }
    assert (calibration.precision, calibration.settings.method) == (precision, "mse")


def test_says_in_a_line_what_it_did(called, test_plan, tmp_path):
    result = called(calibrate, test_plan.path, "-o", tmp_path / "scales.json", *QUICK)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "scales.json: scales of" in result.stderr and result.stderr.count("\n") == 1


def test_the_same_twice(called, test_plan, tmp_path):
    for name in ("a.json", "b.json"):
        assert called(calibrate, test_plan.path, "-o", tmp_path / name, "--smoothquant", 0.5, *QUICK).exit_code == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp16"], "--precision: got fp16, expected one of int8, fp8; choose one"),
        (["--calibration-size", "0"], "--calibration-size: got 0, expected 1 or more"),
        (["--smoothquant", "0.5", "--precision", "fp8"], "--smoothquant: got it with fp8, expected int8"),
        (["-o", "no/such/scales.json"], "-o: got no/such/scales.json, whose folder does not exist"),
        (["-o", "."], "-o: got ., which is a folder, expected a regular file or a new name; choose another"),
        (["--calibration-prompts", "nowhere.txt"], "--calibration-prompts: got nowhere.txt, which does not exist"),
        (["--calibration-prompts", "empty.txt"], "prompts: got empty.txt without any, expected one a line"),
        (["--calibration-prompts", "zebra.txt"], "zebra"),
        (["--wrong"], "No such option"),
    ],
)
def test_wrong_arguments(refused, test_plan, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "zebra.txt").write_text("a red zebra\n")
    assert message in refused(calibrate, test_plan.path, *arguments)
    assert not (tmp_path / "calibration.json").exists()


@pytest.mark.parametrize("name", ["manifest.json", "step.onnx", "new.json"])
def test_nothing_is_written_into_a_plan(refused, altered, tmp_path, name):
    plan = altered(tmp_path, "step", lambda model: None)
    message = refused(calibrate, plan.path, "-o", plan.path / name)
    assert message.startswith("-o: got ") and message.endswith(" expected another place; choose one")
    assert Plan.open(plan.path) == plan


def test_the_prompts_are_not_replaced(refused, test_plan, tmp_path):
    (tmp_path / "p.txt").write_text("red\n")
    prompts = ("--calibration-prompts", tmp_path / "p.txt")
    assert "which this command uses already" in refused(calibrate, test_plan.path, *prompts, "-o", tmp_path / "p.txt")
    assert (tmp_path / "p.txt").read_text() == "red\n"


def test_a_folder_that_cannot_be_written_is_told_at_once(refused, test_plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "videossm.calib.calibrate", None)  # nothing is recorded
    assert refused(calibrate, test_plan.path, "-o", "/proc/scales.json").startswith("-o: cannot write /proc/scales")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_leaves_no_temporary_folder(called, test_plan, tmp_path, monkeypatch, number):
    """SmoothQuant writes graphs to one."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    save = plans.save_graph

    def saved(graph, path):
        save(graph, path)
        signal.raise_signal(number)

    monkeypatch.setattr("videossm.calib.calibrate.save_graph", saved)
    result = called(calibrate, test_plan.path, "-o", tmp_path / "scales.json", "--smoothquant", 0.5, *QUICK)
    assert result.exit_code == 128 + number, result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


def test_a_plan_of_engines(refused, plan_of_engines, tmp_path):
    message = refused(calibrate, plan_of_engines.path, "-o", tmp_path / "scales.json", *QUICK)
    assert message == (
        f"plan: got {plan_of_engines.path} for tensorrt-rtx, expected one of ONNX graphs; "
        "export it with --backend onnxruntime"
    )


def test_no_plan(refused, tmp_path):
    assert "plan: got" in refused(calibrate, tmp_path / "nothing.plan", "-o", tmp_path / "scales.json")


def test_a_plan_of_lower_precision(refused, test_plan, tmp_path):
    (tmp_path / "fp16.plan").mkdir()
    write_half(test_plan, "fp16", tmp_path / "fp16.plan")
    message = refused(calibrate, tmp_path / "fp16.plan", "-o", tmp_path / "scales.json", *QUICK)
    assert "in fp16, expected fp32; export it with --precision fp32" in message


def test_memory_that_is_short(refused, test_plan, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    message = refused(calibrate, test_plan.path, "-o", tmp_path / "scales.json", *QUICK)
    assert message.startswith("memory: got 0.0 GB free, expected about 0.5 GB")


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["NaN", "infinity"])
def test_a_plan_that_makes_no_numbers(refused, altered, scale_weight, tmp_path, value):
    broken = altered(tmp_path, "step", scale_weight("step", FFN, value))
    message = refused(calibrate, broken.path, "-o", tmp_path / "scales.json", *QUICK)
    assert message.startswith("rollout 0, chunk 0, pass 0, engine step: tensor gelu_1: got a value that is not finite")
    assert not (tmp_path / "scales.json").exists()


def test_a_tensor_of_zeros_only(refused, altered, layers, tmp_path):
    def silence(model):
        (linear,) = (each for each in find_linears(model, "step", layers).linears if each.name == FFN)
        for tensor in model.graph.initializer:
            if tensor.name in (linear.weight, linear.bias):
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(list(tensor.dims), np.float32), tensor.name))

    silent = altered(tmp_path, "step", silence)
    message = refused(calibrate, silent.path, "-o", tmp_path / "scales.json", *QUICK)
    assert message == "step.gelu_1: got only zeros, expected other values too; leave it in high precision"


def test_without_its_packages(refused, test_plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "videossm.calib.calibrate", None)
    message = refused(calibrate, test_plan.path, "-o", tmp_path / "scales.json")
    assert message.startswith("calibrate: got no ") and "pip install 'videossm[export]'" in message
