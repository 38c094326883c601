"""Scales from rollouts: of every tensor that can be quantised, over every pass, whatever it was recorded from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from videossm.calib.calibrate import calibrate, recorded_chunks
from videossm.calib.calibration import Calibration
from videossm.calib.linears import find_linears
from videossm.calib.observers import ObserverError
from videossm.calib.plans import PrecisionError, candidates, quantised_engines, quantized_graph, write_quantized
from videossm.calib.record import RecordingError, record
from videossm.calib.smoothquant import smoothing_scale
from videossm.runtime import Plan

LARGEST = {"int8": 127.0, "fp8": 448.0}
ALPHA = 0.5
# Of a smoothed tensor, whose producer was scaled by the quotient of two roundings and runs in another session.
TOLERANCE = 1e-4
FFN_IN, FFN_OUT = "transformer.blocks.1.ffn.0", "transformer.blocks.0.ffn.2"


def ignore():
    pass


def recorded(plan, settings, tensors):
    """Every value that the step's `tensors` took, by tensor and pass: {name: [[values, ..] of each pass]}."""
    seen = {name: [[] for _ in plan.manifest.passes] for name in tensors}

    def on_run(moment, values):
        for name, value in values.items():
            seen[name][moment.index].append(value.copy())

    record(plan, {"step": list(tensors)}, settings.prompts, settings.seeds, settings.chunks, on_run, ignore)
    return seen


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_scale_stands_for_the_largest_value_of_all_passes(test_plan, settings_of, precision):
    settings = settings_of()
    calibration = calibrate(test_plan, precision, settings, ignore)
    for name, by_pass in recorded(test_plan, settings, ["gelu", "add_3.modulated"]).items():
        found, values = calibration.tensors["step"][name], [np.concatenate(each, None) for each in by_pass]
        assert found.amax == pytest.approx(max(np.abs(each).max() for each in values))
        if precision == "int8" and name == "gelu":
            assert found.low == min(each.min() for each in values), "all but a little lies above 0"
            assert found.scale == pytest.approx((found.amax - found.low) / 255)
            assert found.zero_point == round(-128 - found.low / found.scale)
        else:
            assert found.scale == pytest.approx(found.amax / LARGEST[precision])
            assert (found.low, found.zero_point) == (None, 0)
        levels = [each.scalars["sigma"] for each in test_plan.manifest.passes]
        assert [(each.index, each.value) for each in found.passes] == list(enumerate(levels))
        for reached, each in zip(found.passes, values, strict=True):
            assert reached.amax == pytest.approx(np.abs(each).max())
            assert reached.mean_square == pytest.approx(np.square(each.astype(np.float64)).mean(), rel=1e-5)


@pytest.mark.parametrize("attention", [False, True], ids=["linears", "attention too"])
def test_a_scale_for_every_tensor_that_would_be_quantised_and_no_other(test_plan, settings_of, attention):
    settings = settings_of(chunks=1, quantize_attention=attention)
    calibration = calibrate(test_plan, "int8", settings, ignore)
    linears, products, _ = candidates(test_plan)
    expected = {(linear.engine, linear.input) for linear in linears}
    if attention:
        expected |= {(p.engine, name) for p in products for name in (p.query, p.key, p.value)}
    found = {(engine, name) for engine, tensors in calibration.tensors.items() for name in tensors}
    assert found == expected
    assert calibration.settings == settings
    calibration.check(test_plan)


@pytest.mark.parametrize(
    ("changes", "chunks"),
    [
        ({}, 10),
        ({"data": "first-chunks", "chunks": 1}, 2),
        ({"data": "random", "chunks": 2}, 4),
        ({"smoothquant": ALPHA, "chunks": 2}, 8),
        ({"smoothquant": ALPHA, "data": "random", "chunks": 1}, 4),
    ],
    ids=["rollouts", "first chunks", "random", "smoothquant", "smoothquant on random"],
)
def test_every_chunk_is_counted(test_plan, settings_of, changes, chunks):
    settings, counted = settings_of(**changes), []
    calibration = calibrate(test_plan, "int8", settings, lambda: counted.append(1))
    assert len(counted) == recorded_chunks(settings) == chunks
    for engine in quantised_engines(test_plan.manifest):
        quantized_graph(test_plan, engine, calibration, {linear.name for linear in candidates(test_plan)[0]})


def test_later_chunks_and_other_data_change_the_scales(test_plan, settings_of):
    found = [
        calibrate(test_plan, "int8", settings_of(**changes), ignore).tensors["step"]
        for changes in ({}, {"data": "first-chunks", "chunks": 1}, {"data": "random", "chunks": 1})
    ]
    for name, tensor in found[0].items():
        assert tensor.amax >= found[1][name].amax, f"{name}: five chunks hold the first"
    assert any(tensor.amax > found[1][name].amax for name, tensor in found[0].items())
    assert all(tensor.amax != found[2][name].amax for name, tensor in found[0].items())


@pytest.fixture(scope="module")
def smoothed(test_plan, settings_of):
    return calibrate(test_plan, "int8", settings_of(smoothquant=ALPHA), ignore)


def test_smoothquant_keeps_the_channels_of_what_it_rescales(test_plan, settings_of, smoothed):
    by_pass = recorded(test_plan, settings_of(), ["gelu"])["gelu"]
    values = np.concatenate([value.reshape(-1, value.shape[-1]) for each in by_pass for value in each])
    np.testing.assert_array_equal(smoothed.tensors["step"]["gelu"].channel_amax, np.abs(values).max(0))
    read = {(linear.engine, linear.input) for linear in candidates(test_plan)[0]}
    with_channels = {
        (engine, name)
        for engine, tensors in smoothed.tensors.items()
        for name, tensor in tensors.items()
        if tensor.channel_amax is not None
    }
    assert with_channels == read


@pytest.mark.parametrize(
    ("original", "renamed"),
    [("gelu", "gelu.smooth"), ("layer_norm_1", "layer_norm_1")],
    ids=["a Mul, under another name", "folded into a norm, under its own"],
)
def test_smoothquant_scales_are_those_of_the_smoothed_tensors(
    test_plan, settings_of, load_graph, layers, smoothed, original, renamed
):
    """x / s over the same rollouts, s from the formula; the smoothed rollouts differ by rounding only."""
    by_pass = recorded(test_plan, settings_of(), [original])[original]
    values = np.concatenate([value.reshape(-1, value.shape[-1]) for each in by_pass for value in each])
    model = load_graph("step")
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    read = [linear for linear in find_linears(model, "step", layers).linears if linear.input == original]
    rows = np.max([np.abs(weights[linear.weight]).max(1) for linear in read], 0)
    factor = smoothing_scale(np.abs(values).max(0), rows, ALPHA)
    found = smoothed.tensors["step"][renamed]
    assert found.amax == pytest.approx(np.abs(values / factor).max(), rel=TOLERANCE)
    assert len(found.passes) == len(test_plan.manifest.passes)


def test_smoothquant_end_to_end(test_plan, smoothed, tmp_path):
    """Written and read again, it makes a plan that rolls out close to the fp32 one."""
    from videossm.runtime import Rollout

    smoothed.save(tmp_path / "calibration.json")
    loaded = Calibration.load(tmp_path / "calibration.json")
    assert loaded == smoothed
    (tmp_path / "int8.plan").mkdir()
    write_quantized(test_plan, loaded, {linear.name for linear in candidates(test_plan)[0]}, tmp_path / "int8.plan")
    latents = []
    for plan in (test_plan, Plan.open(tmp_path / "int8.plan")):
        rollout = Rollout(plan, "red circle", 4)
        next(rollout)
        latents.append(rollout.sample)
    error = np.linalg.norm(latents[1] - latents[0]) / np.linalg.norm(latents[0])
    assert 0 < error < 0.1


def test_a_checkpoint_that_makes_nan(altered, scale_weight, settings_of, tmp_path):
    broken = altered(tmp_path, "step", scale_weight("step", FFN_IN, np.nan))
    with pytest.raises(
        RecordingError, match=r"^rollout 0, chunk 0, pass 0, engine step: tensor gelu_1: got a value that is not"
    ):
        calibrate(broken, "int8", settings_of(), ignore)


def test_a_checkpoint_that_makes_nan_under_smoothquant(altered, scale_weight, settings_of, tmp_path):
    broken = altered(tmp_path, "step", scale_weight("step", FFN_IN, np.nan))
    with pytest.raises(RecordingError, match=r"^rollout 0, chunk 0, pass 0, engine step: tensor gelu_1"):
        calibrate(broken, "int8", settings_of(smoothquant=ALPHA), ignore)


@pytest.mark.parametrize("smoothquant", [None, ALPHA], ids=["plain", "smoothquant"])
def test_a_tensor_that_is_always_zero(altered, layers, settings_of, tmp_path, smoothquant):
    """A feed-forward layer whose weight and bias are zero leaves GELU nothing but zeros."""

    def silence(model):
        (linear,) = (each for each in find_linears(model, "step", layers).linears if each.name == FFN_IN)
        for tensor in model.graph.initializer:
            if tensor.name in (linear.weight, linear.bias):
                zeros = np.zeros(list(tensor.dims), np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))

    silent = altered(tmp_path, "step", silence)
    with pytest.raises(ObserverError, match=r"^step\.gelu_1\S*: got only zeros, expected other values"):
        calibrate(silent, "int8", settings_of(smoothquant=smoothquant), ignore)


def test_a_plan_of_lower_precision(test_plan, settings_of, tmp_path):
    lower = Plan(test_plan.path, test_plan.manifest.model_copy(update={"precision": "int8"}))
    with pytest.raises(PrecisionError, match="in int8, expected fp32; export it with --precision fp32"):
        calibrate(lower, "int8", settings_of(), ignore)
