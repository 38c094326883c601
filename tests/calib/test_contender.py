"""Plans as a CPU can roll them out: with their own graphs, or with some that compute the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from videossm.calib.calibrate import calibrate
from videossm.calib.contender import Contender, contender
from videossm.calib.plans import candidates, write_half, write_quantized

PROMPT, SEED = "red circle", 4


def latent_and_state(side, chunks=1):
    rollout = side.rollout(PROMPT, SEED)
    for _ in range(chunks):
        next(rollout)
    return rollout.sample, rollout.snapshot().tensors


def test_a_contender_runs_the_files_it_is_given(test_plan, altered, scale_weight, tmp_path):
    other = altered(tmp_path, "step", scale_weight("step", "transformer.blocks.0.self_attn.q+k+v", 1.5))
    files = {"step": other.path / "step.onnx"}
    given, plain = Contender(test_plan, "fp32", files), Contender(test_plan, "fp32")
    assert given.file("step") == files["step"]
    assert given.file("decoder") == test_plan.path / "decoder.onnx"
    latents = [latent_and_state(side)[0] for side in (given, Contender(other, "fp32"), plain)]
    assert np.array_equal(latents[0], latents[1])
    assert not np.array_equal(latents[0], latents[2])


def test_half_precision_is_emulated(test_plan, tmp_path):
    """Its graphs and its manifest are of fp32, its values rounded."""
    (tmp_path / "plan").mkdir()
    side = contender(write_half(test_plan, "fp16", tmp_path / "plan"), tmp_path / "fp16")
    assert (side.precision, set(side.files)) == ("fp32", set(side.plan.manifest.engines))
    assert {tensor.dtype for tensor in side.plan.manifest.tensors()} == {"float32", "int64", "uint8"}
    assert {state.dtype for state in side.plan.manifest.states} == {"float32"}
    keys = latent_and_state(side)[1]["0.key"]
    assert keys.any() and np.array_equal(keys, keys.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("attention", [False, True], ids=["linears", "attention too"])
def test_fp8_is_emulated_bit_by_bit(test_plan, settings_of, tmp_path, attention):
    """Every state after five chunks, against the plan's own graphs."""
    calibration = calibrate(test_plan, "fp8", settings_of(quantize_attention=attention), lambda: None)
    linears, products, _ = candidates(test_plan)
    chosen = {layer.name for layer in (*linears, *(products if attention else ()))}
    (tmp_path / "plan").mkdir()
    plan = write_quantized(test_plan, calibration, chosen, tmp_path / "plan")
    side = contender(plan, tmp_path / "fp8")
    assert (side.plan, side.precision, set(side.files)) == (plan, "fp8", {"step"})
    for file in side.files.values():
        assert "QuantizeLinear" not in {node.op_type for node in onnx.load(file).graph.node}
    (latent, state), (expected, expected_state) = (latent_and_state(each, 5) for each in (side, Contender(plan, "fp8")))
    assert np.array_equal(latent, expected)
    for name, values in expected_state.items():
        assert np.array_equal(state[name], values), name


def test_int8_runs_as_it_is(test_plan, int8_calibration, tmp_path):
    (tmp_path / "plan").mkdir()
    plan = write_quantized(test_plan, int8_calibration, set(), tmp_path / "plan")
    side = contender(plan, tmp_path / "int8")
    assert (side.plan, side.precision, dict(side.files)) == (plan, "int8", {})
    assert not (tmp_path / "int8").exists()
