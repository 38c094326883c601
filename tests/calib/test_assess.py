"""The report on two plans: every measurement is there, on what it says, and of plans that can be compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from videossm.calib import assess as module
from videossm.calib.assess import CompareError, Inputs, Made, assess, check_comparable, contender
from videossm.calib.evaluate import Share
from videossm.calib.plans import candidates, write_half, write_quantized
from videossm.runtime import Plan, Rollout

INPUTS = Inputs(("red circle", "blue square"), (5, 6), chunks=5)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "WARM_CHUNKS", 1)
    monkeypatch.setattr(module, "TIMED_CHUNKS", 3)


@pytest.fixture(scope="module")
def int8_plan(test_plan, int8_calibration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    write_quantized(test_plan, int8_calibration, {linear.name for linear in candidates(test_plan)[0]}, folder)
    return Plan.open(folder)


@pytest.fixture(scope="module")
def fp16_plan(test_plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp16")
    write_half(test_plan, "fp16", folder)
    return Plan.open(folder)


def test_a_report_of_a_quantised_plan(test_plan, int8_plan, int8_calibration, bars):
    linears, _, skipped = candidates(test_plan)
    report = assess(test_plan, int8_plan, INPUTS, Made(int8_calibration, linears, skipped), bars)
    assert bars.seen == [("chunk", 5, 5)] * 2
    assert [step.sigma for step in report.steps] == [*test_plan.manifest.sampler.sigmas, 0.0]
    assert all(0 < step.relative_error.mean <= step.relative_error.worst for step in report.steps)
    assert all(step.cosine.worst <= step.cosine.mean < 1 for step in report.steps)
    for course in (report.guided, report.free_running):
        assert (course.chunks, all(error > 0 for error in course.relative_error)) == (5, True)
        assert all(psnr_db > 20 for psnr_db in course.psnr_db)
    assert {state.kind for state in report.guided.states} > {"window keys", "window values", "memory"}
    assert report.header.a.identity == test_plan.identity
    assert (report.header.b.precision, report.header.prompts, report.header.seeds) == ("int8", *inputs_of(INPUTS))
    assert report.header.calibration.rollouts == 2 and report.header.calibration.quantize_attention
    assert len(report.skipped) == len(skipped)
    assert report.evaluation == (), "nobody can judge what this plan shows"
    assert report.speed.chunks == 3 and set(report.speed.engines) == {"text_encoder", "step", "memory", "decoder"}
    fp32 = sum(4 * np.prod(linear.shape) for linear in linears)
    assert report.sizes.quantised_weights.a_bytes == fp32
    assert 0.25 < report.sizes.quantised_weights.ratio < 0.35
    assert report.sizes.files["calibration.json"].a_bytes == 0
    assert report.sizes.files["decoder.onnx"].ratio == 1
    assert report.sizes.files["step.onnx"].b_bytes == (int8_plan.path / "step.onnx").stat().st_size


def inputs_of(inputs):
    return inputs.prompts, inputs.seeds


def test_a_plan_against_itself(test_plan, bars):
    report = assess(test_plan, test_plan, replace(INPUTS, chunks=4), Made(), bars)
    assert all(step.relative_error.worst == 0 for step in report.steps)
    for course in (report.guided, report.free_running):
        assert set(course.relative_error) == {0.0}
        assert set(course.psnr_db) == {None}
    assert report.header.calibration is report.sensitivity is report.sizes.quantised_weights is None


@pytest.mark.parametrize("sides", ["fp32 fp16", "fp16 fp32", "fp16 int8"])
def test_half_precision_on_either_side(test_plan, fp16_plan, int8_plan, bars, sides):
    plans = {"fp32": test_plan, "fp16": fp16_plan, "int8": int8_plan}
    report = assess(*(plans[side] for side in sides.split()), replace(INPUTS, chunks=2), Made(), bars)
    assert 0 < report.guided_error < 0.1
    assert report.speed is None, "the emulation's speed says nothing"


def test_an_emulated_contender(fp16_plan, tmp_path):
    """Its graphs and its manifest are of fp32, its values rounded."""
    side = contender(fp16_plan, tmp_path / "fp16")
    assert (side.precision, set(side.files)) == ("fp32", {"text_encoder", "step", "memory", "decoder"})
    engines = [engine for _, engine in side.plan.manifest.engines.items()]
    dtypes = {tensor.dtype for engine in engines for tensor in (*engine.inputs, *engine.outputs)}
    assert dtypes == {"float32", "int64", "uint8"}
    rollout = side.rollout("red circle", 4)
    next(rollout)
    keys = rollout.snapshot().tensors["window/present.0.key"]
    assert keys.any() and np.array_equal(keys, keys.astype(np.float16).astype(np.float32))


def test_a_plan_that_runs_as_it_is(int8_plan, tmp_path):
    side = contender(int8_plan, tmp_path / "int8")
    assert (side.plan, side.precision, dict(side.files)) == (int8_plan, "int8", {})
    assert not (tmp_path / "int8").exists()


def test_both_plans_are_evaluated_while_their_files_are_there(test_plan, fp16_plan, bars, monkeypatch):
    """A rollout of each, from the backend that the evaluation is given: for fp16 that of the emulation."""
    given = []

    def evaluate(plan, on_video, backend):
        next(Rollout(plan, "red circle", backend=backend()))
        on_video()
        given.append(backend()._threads)
        return {("5 s", "colour"): Share(100.0 - 25 * len(given), 4)}

    monkeypatch.setattr(module, "can_evaluate", lambda plan: True)
    monkeypatch.setattr(module, "evaluation_videos", lambda plan: 1)
    monkeypatch.setattr(module, "evaluate", evaluate)
    report = assess(test_plan, fp16_plan, Inputs(("red",), (1,), 2), Made(), bars)
    assert given == [1, 1], "one thread each: rollouts run side by side"
    assert bars.seen[1:] == [("video", 1, 1)] * 2
    (score,) = report.evaluation
    assert (score.at, score.name, score.a_percent, score.b_percent, score.videos) == ("5 s", "colour", 75, 50, 4)
    assert not assess(test_plan, fp16_plan, Inputs(("red",), (1,), 2), Made(), bars, evaluation=False).evaluation


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "shapes"), ("model", {"layers": 3}), ("sampler", {"kind": "euler"}), ("stream", {"batch": 2})],
)
def test_plans_of_two_models(test_plan, field, value):
    old = getattr(test_plan.manifest, field)
    new = value if field in ("name", "model") else old.model_copy(update=value)
    other = replace(test_plan, manifest=test_plan.manifest.model_copy(update={field: new}))
    with pytest.raises(CompareError, match=f"^plans: got another {field} in .*expected two plans of one model"):
        check_comparable(test_plan, other)
    check_comparable(test_plan, test_plan)
