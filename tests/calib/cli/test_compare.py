"""`videossm-compare` as a user meets it: the report on two plans, and one line for everything wrong."""

from __future__ import annotations

import errno
import json
import sys

import numpy as np
import pytest

from videossm.calib import assess, memory
from videossm.calib.cli.compare import compare
from videossm.calib.plans import candidates, write_quantized
from videossm.calib.report import read_report
from videossm.runtime.plan import write_manifest

QUICK = ("--chunks", 2)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(assess, "WARM_CHUNKS", 1)
    monkeypatch.setattr(assess, "TIMED_CHUNKS", 2)


@pytest.fixture(scope="module")
def int8_path(test_plan, int8_calibration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    write_quantized(test_plan, int8_calibration, {linear.name for linear in candidates(test_plan)[0]}, folder)
    return folder


def test_writes_the_report_and_prints_it_or_its_summary(called, test_plan, int8_path, tmp_path):
    """The second time over the first one's files."""
    result = called(compare, test_plan.path, int8_path, "-o", tmp_path / "out", "--chunks", 3)
    assert result.exit_code == 0, result.stderr
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines["precision"] == "int8 against fp32"
    assert {"worst", "size", "speed"} < set(lines)
    result = called(compare, test_plan.path, int8_path, "-o", tmp_path / "out", "--json", *QUICK)
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == values
    report = read_report(values)
    assert (report.kind, report.guided.chunks) == ("full", 2)
    assert (tmp_path / "out" / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chunks", "1"], "--chunks: got 1, expected 2 or more; change it"),
        (["-o", "no/such/folder"], "-o: got no/such/folder, whose folder does not exist"),
        (["-o", "file"], "-o: got file, which is a file, expected a folder or a new name; choose another"),
        (["--wrong"], "No such option"),
    ],
)
def test_wrong_arguments(refused, test_plan, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert message in refused(compare, test_plan.path, test_plan.path, *arguments)


@pytest.mark.parametrize("inside", [".", "report", "new/report"])
def test_a_plan_is_not_written_into(refused, test_plan, altered, tmp_path, inside):
    plan = altered(tmp_path, "step", lambda model: None)
    (plan.path / "new").mkdir()
    message = refused(compare, test_plan.path, plan.path, "-o", plan.path / inside, *QUICK)
    assert message.startswith("-o: got ") and "expected another place" in message
    message = refused(compare, test_plan.path, test_plan.path, "-o", plan.path / inside, *QUICK)
    assert message.startswith("-o: got ") and f"which lies in the plan {plan.path}, expected a place outside" in message


@pytest.mark.parametrize("name", ["report.json", "report/steps.png"])
def test_links_are_not_written_through(refused, test_plan, tmp_path, name):
    (tmp_path / "out" / "report").mkdir(parents=True)
    (tmp_path / "out" / name).symlink_to(test_plan.path / "manifest.json")
    message = refused(compare, test_plan.path, test_plan.path, "-o", tmp_path / "out", *QUICK)
    assert message.startswith(f"-o: got {tmp_path}/out/{name}, which is a link")


def test_a_folder_that_cannot_be_written_is_told_at_once(refused, test_plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "videossm.calib.assess", None)  # nothing is rolled out
    assert refused(compare, test_plan.path, test_plan.path, "-o", "/proc/out").startswith(
        "-o: cannot write /proc/out ("
    )


def test_a_plan_of_engines(refused, test_plan, plan_of_engines, tmp_path):
    message = refused(compare, test_plan.path, plan_of_engines.path, "-o", tmp_path / "out", *QUICK)
    assert message == (
        f"plan: got {plan_of_engines.path} for tensorrt-rtx, expected one of ONNX graphs; "
        "export it with --backend onnxruntime"
    )


def test_no_plan(refused, test_plan, tmp_path):
    assert "plan: got" in refused(compare, test_plan.path, tmp_path / "nothing.plan", "-o", tmp_path / "out")


def test_plans_of_two_models(refused, test_plan, altered, tmp_path):
    other = altered(tmp_path, "step", lambda model: None)
    values = other.values()
    write_manifest(other.path, {**values, "model": {**values["model"], "height": 64}})
    message = refused(compare, test_plan.path, other.path, "-o", tmp_path / "out", *QUICK)
    assert message.startswith("plans: got another model in") and "expected two plans of one model" in message
    assert not (tmp_path / "out").exists()


def test_a_plan_that_makes_nan(refused, test_plan, altered, scale_weight, tmp_path):
    broken = altered(tmp_path, "step", scale_weight("step", "transformer.blocks.1.self_attn.o", np.nan))
    message = refused(compare, test_plan.path, broken.path, "-o", tmp_path / "out", *QUICK)
    assert message.startswith("chunk 0, pass 0: change of the sample: got a value that is not finite")


@pytest.mark.parametrize("larger", [0, 1], ids=["A", "B"])
def test_memory_that_is_short_for_either(refused, test_plan, int8_path, tmp_path, monkeypatch, larger):
    sizes = {test_plan.path: 1.0, int8_path: 1.0} | {(test_plan.path, int8_path)[larger]: 3e9}
    monkeypatch.setattr(memory, "needed_bytes", lambda plan: sizes[plan.path])
    monkeypatch.setattr(memory, "available_bytes", lambda: 2e9)
    message = refused(compare, test_plan.path, int8_path, "-o", tmp_path / "out", *QUICK)
    assert message.startswith("memory: got 2.0 GB free, expected about 3.0 GB")


def test_a_full_disk(refused, test_plan, tmp_path, monkeypatch):
    def full(report, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("videossm.calib.report.write_report", full)
    message = refused(compare, test_plan.path, test_plan.path, "-o", tmp_path / "out", *QUICK)
    assert message.endswith("out (No space left on device); choose a place that has room")


def test_without_its_packages(refused, test_plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "videossm.calib.assess", None)
    message = refused(compare, test_plan.path, test_plan.path, "-o", tmp_path / "out")
    assert message.startswith("compare: got no ") and "pip install 'videossm[export]'" in message
