"""From an fp32 plan to one of lower precision with its report inside, and what is refused on the way."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from videossm.calib import assess, memory, pipeline, sensitivity
from videossm.calib.assess import report_inputs
from videossm.calib.calibration import CalibrationError
from videossm.calib.memory import MemoryShortageError
from videossm.calib.options import CalibrationOptions, PrecisionOptions
from videossm.calib.pipeline import lower_precision
from videossm.calib.plans import CALIBRATION_FILE, PrecisionError, candidates
from videossm.calib.report import read_report
from videossm.runtime import Plan, Rollout
from videossm.runtime import plan as plan_module

CHUNKS = 3
TWO_CHUNKS = CalibrationOptions(calibration_size=2, calibration_chunks=2)
REPORT_FILES = {"report.json", "report/report.html", "report/passes.png", "report/guided.png"}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(sensitivity, "STARTS", (0,))
    monkeypatch.setattr(sensitivity, "CHUNKS", 1)
    monkeypatch.setattr(assess, "WARM_CHUNKS", 1)
    monkeypatch.setattr(assess, "TIMED_CHUNKS", 2)
    whole = assess.report_inputs
    monkeypatch.setattr(assess, "report_inputs", lambda plan, chunks=CHUNKS: whole(plan, CHUNKS))
    monkeypatch.setattr(pipeline, "report_inputs", assess.report_inputs)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "engine.plan").mkdir()
    return tmp_path / "engine.plan"


def quantised(plan):
    graphs = (onnx.load(plan.path / f"{name}.onnx") for name in ("text_encoder", "step"))
    return sum(node.op_type == "QuantizeLinear" for graph in graphs for node in graph.graph.node)


@pytest.fixture
def lowered(folder, bars, said):
    """`lowered(plan, options)`: what `lower_precision` makes of it in `folder`."""
    return lambda plan, options, where=None: lower_precision(plan, options, where or folder, bars, said.append)


@pytest.fixture
def scales(int8_calibration, tmp_path):
    """The file of `int8_calibration`."""
    int8_calibration.save(tmp_path / "scales.json")
    return tmp_path / "scales.json"


@pytest.mark.parametrize("kind", ["short", "full"])
def test_int8_with_its_report(test_plan, lowered, folder, bars, kind):
    made = lowered(test_plan, PrecisionOptions("int8", calibrating=TWO_CHUNKS, report=kind))
    report, plan = made.report, Plan.open(folder)
    assert bars.stages[0] == "calibration" and bars.seen[0] == ("chunk", 4, 4)
    assert plan == made.plan
    assert plan.manifest.precision == "int8"
    assert set(plan.manifest.files) > {*REPORT_FILES, CALIBRATION_FILE}
    assert read_report(json.loads((folder / "report.json").read_text())) == report
    assert (report.kind, report.guided.chunks) == (kind, CHUNKS)
    assert report.header.a.identity == test_plan.identity
    assert next(Rollout(plan, "red circle")).frames.any()
    if kind == "short":
        assert report.sensitivity is None
    else:
        assert [layer.kept for layer in report.sensitivity.ranked] == ["int8"] * len(candidates(test_plan)[0])
        assert (report.sensitivity.budget, report.sensitivity.fallback) == (None, ())
        assert "report/sensitivity.png" in plan.manifest.files


def test_every_file_is_hashed_once(test_plan, scales, lowered, folder, monkeypatch):
    """And what is shared with the source not at all."""
    hashed, whole = [], plan_module._sha256
    monkeypatch.setattr(plan_module, "_sha256", lambda path: hashed.append(path.name) or whole(path))
    lowered(test_plan, PrecisionOptions("int8", scales))
    written = {path.name for path in folder.rglob("*") if path.is_file()} - {"manifest.json"}
    shared = {f"{name}.onnx" for name in test_plan.manifest.lower_precision.kept_engines} | {"tokenizer.json"}
    assert sorted(hashed) == sorted(written - shared)


def test_a_budget_returns_the_costliest_layers(test_plan, int8_calibration, scales, lowered):
    """Half of what all of them cost: some go back, none of which costs less than one that stays."""
    inputs = report_inputs(test_plan)
    probe = sensitivity.Probe(test_plan, inputs.prompts, inputs.seeds)
    budget = probe.error(int8_calibration, set(probe.engines)) / 2
    made = lowered(test_plan, PrecisionOptions("int8", scales, max_error=budget))
    table = made.report.sensitivity
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
    assert quantised(made.plan) == pairs, "query, key, value and probabilities of a product"


def test_a_budget_that_holds_ranks_nothing(test_plan, scales, lowered, bars):
    made = lowered(test_plan, PrecisionOptions("int8", scales, max_error=10.0))
    table = made.report.sensitivity
    assert (table.layers, table.budget, table.fallback[0].layers) == ((), 10.0, ())
    assert [unit for unit, _, _ in bars.seen] == ["chunk"], "that of the report"


def test_without_a_report_nothing_is_measured(test_plan, scales, lowered, folder, bars):
    made = lowered(test_plan, PrecisionOptions("int8", scales, report="none"))
    assert made.report is None and made.plan == Plan.open(folder)
    assert bars.seen == []
    assert set(made.plan.manifest.files) == {*test_plan.manifest.files, CALIBRATION_FILE}


def test_a_budget_without_a_report(test_plan, scales, lowered):
    made = lowered(test_plan, PrecisionOptions("int8", scales, max_error=1e-9, report="none"))
    assert quantised(made.plan) == 0, "no layer holds such a budget"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_with_its_report(test_plan, lowered, precision):
    made = lowered(test_plan, PrecisionOptions(precision))
    assert made.plan.manifest.precision == precision
    assert set(made.plan.manifest.files) >= REPORT_FILES
    assert CALIBRATION_FILE not in made.plan.manifest.files
    assert 0 < made.report.guided_error < 0.1
    assert made.report.sensitivity is made.report.header.calibration is None


def test_a_calibration_of_another_plan(altered, scale_weight, scales, lowered, folder, tmp_path):
    other = altered(tmp_path, "step", scale_weight("step", "transformer.blocks.0.ffn.2", 2))
    with pytest.raises(CalibrationError, match=r"source\.engines\.step: got sha256 .*calibrate this plan"):
        lowered(other, PrecisionOptions("int8", scales))
    assert list(folder.iterdir()) == []


def test_a_calibration_that_is_used_again(test_plan, tmp_path, lowered):
    """What a plan keeps of its calibration makes the same engines, byte by byte."""
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.mkdir()
    smoothed = CalibrationOptions(calibration_size=2, calibration_chunks=1, smoothquant=0.5)
    lowered(test_plan, PrecisionOptions("int8", calibrating=smoothed, report="none"), first)
    again = PrecisionOptions("int8", first / CALIBRATION_FILE, report="none")
    lowered(test_plan, again, second)
    assert Plan.open(first).identity == Plan.open(second).identity


def test_a_source_of_lower_precision(test_plan, scales, tmp_path, lowered):
    options = PrecisionOptions("int8", scales, report="none")
    plan = lowered(test_plan, options).plan
    with pytest.raises(PrecisionError, match="in int8, expected fp32"):
        lowered(plan, options, tmp_path)


def test_memory_that_is_short_is_told_first(test_plan, lowered, folder, bars, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryShortageError, match=r"^memory: got 0\.0 GB free, expected about 0\.5 GB"):
        lowered(test_plan, PrecisionOptions("int8"))
    assert (list(folder.iterdir()), bars.seen) == ([], [])


def test_the_written_scales_are_in_the_graph(test_plan, int8_calibration, scales, folder, lowered):
    lowered(test_plan, PrecisionOptions("int8", scales, report="none"))
    graph = onnx.load(folder / "step.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {float(constants[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"}
    known = {float(np.float32(tensor.scale)) for tensor in int8_calibration.tensors["step"].values()}
    assert found - known == {float(np.float32(1 / 127))}, "that of probabilities needs no calibration"
