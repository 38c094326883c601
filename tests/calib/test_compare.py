"""Two plans side by side: nothing against itself, and against another what a direct computation says."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from videossm.calib.backend import TappedBackend
from videossm.calib.compare import Comparison, difference, psnr_db
from videossm.calib.contender import Contender
from videossm.calib.record import RecordingError
from videossm.models.videossm.presets import test as small_preset
from videossm.runtime import Rollout
from videossm.runtime.backends.memory import HostBuffer
from videossm.runtime.window import Ring

PROMPT, SEED = "red circle", 3
CHUNKS = 8  # the window of three rolls, and the memory is read
EXACT = (0.0, pytest.approx(1.0))
ROUNDING = 1e-5  # relative, of errors of fp32 values computed in another order
BIAS_SHARE = 0.03  # of the values, whose weight the perturbed plan scales and whose bias it leaves


@pytest.fixture(scope="module")
def itself(test_plan):
    side = Contender(test_plan, "fp32")
    return list(Comparison(side, side, PROMPT, free_running=True).errors(PROMPT, SEED, CHUNKS))


@pytest.fixture(scope="module")
def perturbed_plan(altered, scale_weight, tmp_path_factory):
    """Half as much again of the first block's values: what the window and the memory hold differs most."""
    values = slice(2 * small_preset().transformer.dim, None)
    change = scale_weight("step", "transformer.blocks.0.self_attn.q+k+v", 1.5, values)
    return altered(tmp_path_factory.mktemp("plans"), "step", change)


@pytest.fixture(scope="module")
def perturbed(test_plan, perturbed_plan):
    """Long enough to tell what grows; not the first rollout of the comparison."""
    sides = Contender(test_plan, "fp32"), Contender(perturbed_plan, "fp32")
    comparison = Comparison(*sides, PROMPT, free_running=True)
    list(comparison.errors("blue square", SEED + 1, 2))
    return list(comparison.errors(PROMPT, SEED, 24))


def test_a_plan_against_itself(test_plan, itself):
    assert len(itself) == CHUNKS
    for errors in itself:
        assert errors.passes == [EXACT] * len(test_plan.manifest.passes)
        assert errors.guided.sample == errors.free.sample == EXACT
        assert errors.guided.psnr_db is errors.free.psnr_db is None
        assert all(error in (EXACT, None) for error in errors.states.values())


def test_every_state_is_compared_by_kind_and_layer(test_plan, itself):
    layers, caches = range(small_preset().transformer.layers), range(small_preset().autoencoder.depth)
    kinds = ["*.key", "*.value", "*.decay", "*.beta", "*.memory"]
    expected = {(kind, layer) for kind in kinds for layer in layers} | {("cache.*", layer) for layer in caches}
    for errors in itself:
        assert set(errors.states) == expected


def test_the_memory_counts_from_the_first_eviction(test_plan, itself):
    window = test_plan.manifest.window.chunks
    for chunk, errors in enumerate(itself):
        assert (errors.states["*.memory", 0] is None) == (chunk < window), f"chunk {chunk}"
        assert errors.states["*.key", 0] is not None


def test_another_plan_differs(perturbed):
    for errors in perturbed:
        assert all(error > 0 for error, _ in errors.passes)
        for error in (errors.guided, errors.free):
            assert error.sample[0] > 0 and error.psnr_db > 0


def test_states_differ_by_what_was_changed_and_what_follows(perturbed):
    """Given the same latents, the first block's keys and gates are equal, its values and their memory 1.5 times A's."""
    for errors in perturbed:
        for kind in ("*.key", "*.decay", "*.beta"):
            assert errors.states[kind, 0] == EXACT
            assert errors.states[kind, 1][0] > 0
        assert errors.states["*.value", 0][0] == pytest.approx(0.5, abs=BIAS_SHARE)
    assert perturbed[-1].states["*.memory", 0][0] == pytest.approx(0.5, abs=BIAS_SHARE)


def test_the_guided_error_does_not_accumulate_and_the_free_one_does_not_shrink(perturbed):
    first, last = perturbed[:6], perturbed[-6:]
    guided = [np.mean([errors.guided.sample[0] for errors in part]) for part in (first, last)]
    free = [np.mean([errors.free.sample[0] for errors in part]) for part in (first, last)]
    assert guided[1] < guided[0]
    assert free[1] > free[0]
    assert free[1] > 3 * guided[1]
    assert perturbed[0].guided == perturbed[0].free, "they part after the first chunk"


def test_guided_chunks_start_from_the_leaders_state(test_plan, perturbed_plan, perturbed):
    """The same as a rollout of B that is restored by hand."""
    leader, guided = (Rollout(plan, PROMPT, SEED) for plan in (test_plan, perturbed_plan))
    for errors in perturbed[:5]:
        guided.restore(leader.snapshot())
        frames = next(leader).frames, next(guided).frames
        assert errors.guided.sample == pytest.approx(difference(leader.sample, guided.sample), rel=1e-3)
        assert errors.guided.psnr_db == pytest.approx(psnr_db(*frames), rel=1e-3)


def test_a_pass_is_judged_by_what_it_changes(test_plan, perturbed_plan, perturbed):
    """The same passes run by hand on A's inputs: of the sample what is added to it, of the commit keys and values."""
    seen = {}
    spec = test_plan.manifest.engines["step"]
    names = [tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.dtype == "float32"]

    def on_run(engine, tensors):
        index = len(seen) % len(test_plan.manifest.passes)
        seen[len(seen)] = index, {name: values.copy() for name, values in tensors.items()}

    list(islice(Rollout(test_plan, PROMPT, SEED, backend=TappedBackend({"step": names}, on_run)), 5))
    other = TappedBackend({"step": names}, lambda engine, tensors: ran.update(tensors))
    engine = other.load("step", spec, perturbed_plan.path / spec.file)
    buffers = {t.name: HostBuffer(np.zeros(t.shape, t.host_dtype)) for t in (*spec.inputs, *spec.outputs)}
    ends = ({tensor.name: buffers[tensor.name] for tensor in tensors} for tensors in (spec.inputs, spec.outputs))
    bound, ran = engine.bind(*ends), {}
    positions = {"slot_position": None, "frame_position": None}
    chunk = 4  # the window is full
    ring = Ring(test_plan.manifest.window)
    positions = dict(zip(positions, ring.positions(chunk, ring.held(chunk)), strict=True))
    for name, values in positions.items():
        buffers[name].write(np.array(values))
    passes = len(test_plan.manifest.passes)
    for number in range(chunk * passes, (chunk + 1) * passes):
        index, tensors = seen[number]
        for tensor in spec.inputs:
            if tensor.name in tensors:
                buffers[tensor.name].write(tensors[tensor.name])
        bound.run()
        if test_plan.manifest.passes[index].commits:
            kept = [t.name for t in spec.outputs if t.name.endswith((".key", ".value"))]
            sides = [np.concatenate([side[name].ravel() for name in kept]) for side in (tensors, ran)]
        else:
            sides = [side["latent_next"] - tensors["latent"] for side in (tensors, ran)]
        assert perturbed[chunk].passes[index] == pytest.approx(difference(*sides), rel=ROUNDING), f"pass {index}"


def test_a_plan_that_makes_nan(test_plan, altered, scale_weight, tmp_path):
    broken = altered(tmp_path, "step", scale_weight("step", "transformer.blocks.1.self_attn.o", np.nan))
    sides = Contender(test_plan, "fp32"), Contender(broken, "fp32")
    message = r"^chunk 0, pass 0: change of the sample: got a value that is not finite"
    with pytest.raises(RecordingError, match=message):
        list(Comparison(*sides, PROMPT, free_running=False).errors(PROMPT, SEED, 2))


def test_difference_and_psnr():
    a, b = np.array([3.0, 4.0], np.float32), np.array([3.0, 3.0], np.float32)
    assert difference(a, b) == (pytest.approx(0.2), pytest.approx(21 / (5 * 18**0.5)))
    dark, light = np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)
    assert psnr_db(dark, light) == pytest.approx(0.0), "no overflow of 8 bits"
    assert psnr_db(light, light) is None


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3e38], ids=["NaN", "infinity", "what overflows"])
def test_a_difference_that_is_not_finite_is_the_callers_to_tell(wrong):
    """NumPy's own warnings would be lines of their own on stderr."""
    a = np.array([1.0, np.float32(wrong)], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(difference(a, -a)).all() == (wrong == 3e38), "float64 holds what fp32 does"
        assert not np.isfinite(difference(np.zeros(2), a)).all()


def test_free_running_is_left_out_where_nobody_asks(test_plan, perturbed_plan, perturbed):
    """The rest stays as it is."""
    sides = Contender(test_plan, "fp32"), Contender(perturbed_plan, "fp32")
    comparison = Comparison(*sides, PROMPT, free_running=False)
    for errors, expected in zip(comparison.errors(PROMPT, SEED, 5), perturbed[:5], strict=True):
        assert errors == replace(expected, free=None)
