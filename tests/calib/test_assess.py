"""The report on two plans: every measurement is there, on what it says, and of plans that can be compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from videossm.calib import assess as module
from videossm.calib import sensitivity
from videossm.calib.assess import (
    CompareError,
    Inputs,
    Origin,
    check_comparable,
    full_report,
    report_inputs,
    short_inputs,
    short_report,
)
from videossm.calib.options import SEED, SIZE
from videossm.calib.plans import candidates, write_half, write_quantized
from videossm.calib.sensitivity import Fallback, Ranking
from videossm.models.family import Figure, Video

INPUTS = Inputs(("red circle", "blue square"), (5, 6), chunks=5)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "WARM_CHUNKS", 1)
    monkeypatch.setattr(module, "TIMED_CHUNKS", 3)
    monkeypatch.setattr(module, "PACE_CHUNKS", 1)
    monkeypatch.setattr(sensitivity, "STARTS", (0,))
    monkeypatch.setattr(sensitivity, "CHUNKS", 1)


@pytest.fixture(scope="module")
def int8_plan(test_plan, int8_calibration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    return write_quantized(test_plan, int8_calibration, {linear.name for linear in candidates(test_plan)[0]}, folder)


@pytest.fixture(scope="module")
def fp16_plan(test_plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp16")
    return write_half(test_plan, "fp16", folder)


@pytest.fixture
def origin(test_plan, int8_calibration):
    """How the int8 plan was made, without attention's products."""
    linears, _, skipped = candidates(test_plan)
    return Origin(int8_calibration, [linear.name for linear in linears], linears, skipped)


def check_common_parts(report, test_plan, int8_plan, origin):
    passes = test_plan.manifest.passes
    assert [(each.scalar, each.value) for each in report.passes] == [("sigma", of.scalars["sigma"]) for of in passes]
    assert [each.commits for each in report.passes] == [of.commits for of in passes]
    assert all(0 < each.relative_error.mean <= each.relative_error.worst for each in report.passes)
    assert all(each.cosine.worst <= each.cosine.mean < 1 for each in report.passes)
    assert (report.guided.chunks, all(error > 0 for error in report.guided.relative_error)) == (5, True)
    assert all(psnr_db > 20 for psnr_db in report.guided.psnr_db)
    assert {state.kind for state in report.guided.states} > {"*.key", "*.value", "*.memory", "cache.*"}
    assert report.header.a.identity == test_plan.identity
    assert (report.header.b.precision, report.header.prompts, report.header.seeds) == ("int8", *inputs_of(INPUTS))
    assert report.header.calibration.rollouts == 2 and report.header.calibration.quantize_attention
    assert len(report.skipped) == len(origin.skipped)
    assert report.speed.chunks == 3 and set(report.speed.engines) == set(test_plan.manifest.engines)
    assert report.sizes.quantised_weights.a_bytes == sum(4 * np.prod(linear.shape) for linear in origin.quantised)
    assert 0.25 < report.sizes.quantised_weights.ratio < 0.35
    assert report.sizes.files["calibration.json"].a_bytes == 0
    assert report.sizes.files["decoder.onnx"].ratio == 1
    assert report.sizes.files["step.onnx"].b_bytes == (int8_plan.path / "step.onnx").stat().st_size


def inputs_of(inputs):
    return inputs.prompts, inputs.seeds


def test_a_short_report_of_a_quantised_plan(test_plan, int8_plan, origin, bars, said):
    report = short_report(test_plan, int8_plan, INPUTS, origin, bars, said.append)
    check_common_parts(report, test_plan, int8_plan, origin)
    assert report.sensitivity is None
    total = 2 * 3 * 5 + 2 * (1 + 3)
    assert bars.seen == [("chunk", total, total)], "A, one pass after the other through B, B from A's states"
    assert bars.stages == ["rollout 1 of 2", "rollout 2 of 2", "speed"]
    assert said == [], "it is not long"


def test_a_full_report_of_a_quantised_plan(test_plan, int8_plan, origin, bars, said):
    report = full_report(test_plan, int8_plan, INPUTS, origin, bars, said.append)
    check_common_parts(report, test_plan, int8_plan, origin)
    assert (report.free_running.chunks, all(error > 0 for error in report.free_running.relative_error)) == (5, True)
    assert report.evaluation == (), "nobody can judge what this plan shows"
    assert {layer.layer for layer in report.sensitivity.layers} == set(origin.layers)
    assert [layer.rank for layer in report.sensitivity.layers] == list(range(1, 1 + len(origin.layers)))
    errors = [layer.error for layer in report.sensitivity.layers]
    assert errors == sorted(errors, reverse=True)
    assert {layer.kept for layer in report.sensitivity.layers} == {"int8"}
    total = 2 * 4 * 5 + 2 * (1 + 3) + 2 * len(origin.layers)
    assert bars.seen == [("chunk", total, total)]
    assert bars.stages == ["rollout 1 of 2", "rollout 2 of 2", "sensitivity", "speed"]


def test_layers_that_are_ranked_already_are_not_ranked_again(test_plan, int8_plan, origin, bars, said):
    errors = {name: 1 / rank for rank, name in enumerate(origin.layers, 1)}
    first = origin.layers[0]
    ranking = Ranking(errors, dict.fromkeys(origin.layers, ("step",)), 0.3, Fallback((first,), 0.5, 0.25))
    for kind in (short_report, full_report):
        table = kind(test_plan, int8_plan, INPUTS, replace(origin, ranking=ranking), bars, said.append).sensitivity
        assert {layer.layer: layer.error for layer in table.layers} == errors
        assert [layer.layer for layer in table.layers if layer.kept == "fp32"] == [first]
        assert (table.budget, table.fallback[0].error_before, table.fallback[0].error_after) == (0.3, 0.5, 0.25)
    assert "sensitivity" not in bars.stages


def test_a_budget_that_held_is_ranked_by_a_full_report_only(test_plan, int8_plan, origin, bars, said):
    held = replace(origin, layers=origin.layers[:2], ranking=Ranking({}, {}, 0.3, Fallback((), 0.1, 0.1)))
    held = replace(held, ranking=replace(held.ranking, engines=dict.fromkeys(origin.layers, ("step",))))
    tables = [
        kind(test_plan, int8_plan, INPUTS, held, bars, said.append).sensitivity for kind in (short_report, full_report)
    ]
    assert [len(table.layers) for table in tables] == [0, 2]
    assert [table.fallback[0].error_before for table in tables] == [0.1, 0.1]


def test_long_reports_are_announced(test_plan, int8_plan, origin, bars, said, monkeypatch):
    """From the time that a few chunks take: a second each, here."""
    clock = iter(range(10_000))
    monkeypatch.setattr(module, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module, "_speed", lambda *arguments: None)
    short_report(test_plan, int8_plan, INPUTS, origin, bars, said.append)
    assert said == [], "38 chunks in thirds of a second"
    full_report(test_plan, int8_plan, replace(INPUTS, chunks=20), origin, bars, said.append)
    chunks = 2 * 4 * 20 + 2 * (1 + 3) + 2 * len(origin.layers)
    assert said == [f"report: about {chunks / 4:.0f} seconds on this machine"]


def test_a_plan_against_itself(test_plan, bars, said):
    report = full_report(test_plan, test_plan, replace(INPUTS, chunks=4), Origin(), bars, said.append)
    assert all(each.relative_error.worst == 0 for each in report.passes)
    for course in (report.guided, report.free_running):
        assert set(course.relative_error) == {0.0}
        assert set(course.psnr_db) == {None}
    assert report.header.calibration is report.sensitivity is report.sizes.quantised_weights is None


@pytest.mark.parametrize("sides", ["fp32 fp16", "fp16 fp32", "fp16 int8"])
def test_half_precision_on_either_side(test_plan, fp16_plan, int8_plan, bars, said, sides):
    plans = {"fp32": test_plan, "fp16": fp16_plan, "int8": int8_plan}
    pair = (plans[side] for side in sides.split())
    report = short_report(*pair, replace(INPUTS, chunks=2), Origin(), bars, said.append)
    assert 0 < report.guided_error < 0.1
    assert report.speed is None, "the emulation's speed says nothing"
    assert bars.seen == [("chunk", 12, 12)]


def test_a_short_report_goes_past_the_window_and_reads_the_memory(test_plan):
    inputs = short_inputs(test_plan)
    assert inputs.chunks > test_plan.manifest.window.chunks + 10
    assert len(inputs.prompts) == len(inputs.seeds) == 2


def test_a_report_sees_nothing_of_what_calibrates_by_default(test_plan):
    inputs = report_inputs(test_plan, 7)
    assert (len(inputs.prompts), len(inputs.seeds), inputs.chunks) == (2, 2, 7)
    assert not set(inputs.seeds) & set(range(SEED, SEED + SIZE))
    assert inputs == report_inputs(test_plan, 7)


class Judge:
    """An evaluation of one short video, which counts what it is shown."""

    def __init__(self):
        self.shown = []

    def videos(self):
        return [Video("red circle", 3, 0.1)]

    def figures(self, frames, fps):
        ((video, content),) = frames.items()
        self.shown.append((video, content.shape))
        return [Figure("5 s", "colour", 100.0 - 25 * len(self.shown), 4)]


def test_both_plans_are_evaluated_while_their_files_are_there(test_plan, fp16_plan, bars, said, monkeypatch):
    """A rollout of each; for fp16 by the graphs of the emulation."""
    judge = Judge()
    monkeypatch.setattr(module, "find_evaluation", lambda plan: judge)
    pair, inputs, stream = (test_plan, fp16_plan), Inputs(("red",), (1,), 2), test_plan.manifest.stream
    report = full_report(*pair, inputs, Origin(), bars, said.append)
    shape = (stream.first_frames, stream.height, stream.width, 3)
    assert judge.shown == [(Video("red circle", 3, 0.1), shape)] * 2
    assert bars.seen == [("chunk", 10, 10)]
    assert bars.stages == ["rollout 1 of 1", "evaluation of A", "evaluation of B"]
    (score,) = report.evaluation
    assert (score.at, score.name, score.a_percent, score.b_percent, score.videos) == ("5 s", "colour", 75, 50, 4)
    assert not full_report(*pair, inputs, Origin(), bars, said.append, evaluation=False).evaluation


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "shapes"),
        ("model", {"layers": 3}),
        ("stream", {"batch": 2}),
        ("passes", {"scalars": {}}),
        ("states", {"kind": "carry"}),
    ],
)
def test_plans_of_two_models(test_plan, field, value):
    old = getattr(test_plan.manifest, field)
    if field in ("passes", "states"):
        value = (old[0].model_copy(update=value), *old[1:])
    elif field == "stream":
        value = old.model_copy(update=value)
    other = replace(test_plan, manifest=test_plan.manifest.model_copy(update={field: value}))
    with pytest.raises(CompareError, match=f"^plans: got another {field} in .*expected two plans of one model"):
        check_comparable(test_plan, other)
    check_comparable(test_plan, test_plan)


def test_precisions_of_one_model_are_comparable(test_plan, fp16_plan):
    """Although their states have other dtypes."""
    assert test_plan.manifest.states != fp16_plan.manifest.states
    check_comparable(test_plan, fp16_plan)
