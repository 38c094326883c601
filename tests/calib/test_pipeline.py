"""From an fp32 plan to one of lower precision with its report inside, and what is refused on the way."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from videossm.calib import assess, memory, sensitivity
from videossm.calib.calibration import Calibration, CalibrationError
from videossm.calib.cli.options import SEED, SIZE
from videossm.calib.memory import MemoryShortageError
from videossm.calib.pipeline import Request, lower_precision, report_inputs
from videossm.calib.plans import CALIBRATION_FILE, PrecisionError, candidates
from videossm.calib.report import Report
from videossm.runtime import Plan, Rollout

CHUNKS = 3
REPORT_FILES = {"report.json", "report/report.html", "report/steps.png", "report/guided.png"}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(sensitivity, "STARTS", (0,))
    monkeypatch.setattr(sensitivity, "CHUNKS", 1)
    monkeypatch.setattr(assess, "WARM_CHUNKS", 1)
    monkeypatch.setattr(assess, "TIMED_CHUNKS", 2)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "engine.plan").mkdir()
    return tmp_path / "engine.plan"


def quantised(plan):
    graphs = (onnx.load(plan.path / f"{name}.onnx") for name in ("text_encoder", "step"))
    return sum(node.op_type == "QuantizeLinear" for graph in graphs for node in graph.graph.node)


def test_int8_with_its_report(test_plan, settings_of, folder, bars):
    request = Request("int8", settings=settings_of(chunks=2), report_chunks=CHUNKS)
    report = lower_precision(test_plan, request, folder, bars)
    layers = len(candidates(test_plan)[0])
    assert bars.seen == [("chunk", 4, 4), ("layer", layers, layers), *[("chunk", CHUNKS, CHUNKS)] * 2]
    plan = Plan.open(folder)
    assert plan.manifest.precision == "int8"
    assert set(plan.manifest.files) > {*REPORT_FILES, CALIBRATION_FILE, "report/sensitivity.png"}
    assert Report.from_dict(json.loads((folder / "report.json").read_text())) == report
    assert report.guided.chunks == CHUNKS
    assert [layer.kept for layer in report.sensitivity.ranked] == ["int8"] * layers
    assert (report.sensitivity.budget, report.sensitivity.fallback) == (None, ())
    assert [layer.error for layer in report.sensitivity.ranked] == sorted(
        (layer.error for layer in report.sensitivity.layers), reverse=True
    )
    assert report.header.a.identity == test_plan.identity
    assert next(Rollout(plan, "red circle")).frames.any()


def test_a_budget_returns_the_costliest_layers(test_plan, int8_calibration, folder, bars):
    """Half of what all of them cost: some go back, none of which costs less than one that stays."""
    inputs = report_inputs(test_plan)
    probe = sensitivity.Probe(test_plan, inputs.prompts, inputs.seeds)
    budget = probe.error(int8_calibration, set(probe.engines)) / 2
    request = Request("int8", calibration=int8_calibration, max_error=budget, report_chunks=CHUNKS)
    table = lower_precision(test_plan, request, folder, bars).sensitivity
    back = [layer for layer in table.layers if layer.kept == "fp32"]
    kept = [layer for layer in table.layers if layer.kept == "int8"]
    assert back and kept
    assert min(layer.error for layer in back) >= max(layer.error for layer in kept)
    assert all(f"an error of at most {budget:g}" in layer.reason for layer in back)
    (fallback,) = table.fallback
    assert set(fallback.layers) == {layer.layer for layer in back}
    assert fallback.error_before == pytest.approx(2 * budget)
    assert fallback.error_after <= budget == table.budget
    products = {product.name for product in candidates(test_plan)[1]}
    pairs = sum(4 if layer.layer in products else 1 for layer in kept)
    assert quantised(Plan.open(folder)) == pairs, "query, key, value and probabilities of a product"


def test_without_a_report_nothing_is_measured(test_plan, int8_calibration, folder, bars):
    request = Request("int8", calibration=int8_calibration, report=False)
    assert lower_precision(test_plan, request, folder, bars) is None
    assert bars.seen == []
    assert set(Plan.open(folder).manifest.files) == {*test_plan.manifest.files, CALIBRATION_FILE}


def test_a_budget_without_a_report(test_plan, int8_calibration, folder, bars):
    request = Request("int8", calibration=int8_calibration, max_error=1e-9, report=False)
    lower_precision(test_plan, request, folder, bars)
    assert quantised(Plan.open(folder)) == 0, "no layer holds such a budget"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_with_its_report(test_plan, folder, bars, precision):
    report = lower_precision(test_plan, Request(precision, report_chunks=CHUNKS), folder, bars)
    plan = Plan.open(folder)
    assert plan.manifest.precision == precision
    assert set(plan.manifest.files) >= REPORT_FILES
    assert CALIBRATION_FILE not in plan.manifest.files
    assert 0 < report.guided_error < 0.1
    assert report.sensitivity is report.header.calibration is None


def test_a_calibration_of_another_plan(altered, scale_weight, int8_calibration, folder, tmp_path, bars):
    other = altered(tmp_path, "step", scale_weight("step", "transformer.blocks.0.ffn.2", 2))
    with pytest.raises(CalibrationError, match=r"source\.engines\.step: got sha256 .*calibrate this plan"):
        lower_precision(other, Request("int8", calibration=int8_calibration), folder, bars)
    assert list(folder.iterdir()) == []


def test_a_calibration_that_is_used_again(test_plan, settings_of, tmp_path, bars):
    """What a plan keeps of its calibration makes the same engines, byte by byte."""
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.mkdir()
    request = Request("int8", settings=settings_of(chunks=1, smoothquant=0.5), report=False)
    lower_precision(test_plan, request, first, bars)
    again = Request("int8", calibration=Calibration.load(first / CALIBRATION_FILE), report=False)
    lower_precision(test_plan, again, second, bars)
    assert Plan.open(first).identity == Plan.open(second).identity


def test_a_source_of_lower_precision(test_plan, int8_calibration, folder, tmp_path, bars):
    request = Request("int8", calibration=int8_calibration, report=False)
    lower_precision(test_plan, request, folder, bars)
    with pytest.raises(PrecisionError, match="in int8, expected fp32"):
        lower_precision(Plan.open(folder), request, tmp_path, bars)


def test_memory_that_is_short_is_told_first(test_plan, settings_of, folder, bars, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryShortageError, match=r"^memory: got 0\.0 GB free, expected about 0\.5 GB"):
        lower_precision(test_plan, Request("int8", settings=settings_of()), folder, bars)
    assert (list(folder.iterdir()), bars.seen) == ([], [])


def test_a_report_sees_nothing_of_what_calibrates_by_default(test_plan):
    inputs = report_inputs(test_plan, 7)
    assert (len(inputs.prompts), len(inputs.seeds), inputs.chunks) == (2, 2, 7)
    assert not set(inputs.seeds) & set(range(SEED, SEED + SIZE))
    assert inputs == report_inputs(test_plan, 7)


def test_the_written_scales_are_in_the_graph(test_plan, int8_calibration, folder, bars):
    lower_precision(test_plan, Request("int8", calibration=int8_calibration, report=False), folder, bars)
    graph = onnx.load(folder / "step.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {float(constants[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"}
    known = {float(np.float32(tensor.scale)) for tensor in int8_calibration.tensors["step"].values()}
    assert found - known == {float(np.float32(1 / 127))}, "that of probabilities needs no calibration"
