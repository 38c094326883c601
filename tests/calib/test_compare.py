"""Two plans side by side: nothing against itself, and against another what a direct computation says."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from videossm.calib.backend import TappedBackend
from videossm.calib.compare import Comparison, _States, _StepErrors, difference, psnr_db
from videossm.calib.contender import Contender
from videossm.calib.record import RecordingError, passes
from videossm.models.videossm.presets import test as small_preset
from videossm.models.videossm.step import Step
from videossm.runtime import Rollout

PROMPT, SEED = "red circle", 3
CHUNKS = 8  # the window of three rolls, and the memory is read
EXACT = (0.0, pytest.approx(1.0))
# Of velocities won back from latents in fp32; at sigma 0.7 the division makes 1e-7 ten times larger.
VELOCITY_TOLERANCE = 1e-5
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
        assert errors.steps == [EXACT] * len(passes(test_plan.manifest))
        assert errors.guided.latents == errors.free.latents == EXACT
        assert errors.guided.psnr_db is errors.free.psnr_db is None
        assert all(error in (EXACT, None) for error in errors.states.values())


def test_every_state_is_compared_by_kind_and_layer(test_plan, itself):
    layers = range(len(test_plan.manifest.memory))
    kinds = ["window keys", "window values", "gate decay", "gate beta", "memory"]
    for errors in itself:
        assert set(errors.states) == {(kind, layer) for kind in kinds for layer in layers}


def test_the_memory_counts_from_the_first_eviction(test_plan, itself):
    window = test_plan.manifest.stream.window_frames // test_plan.manifest.stream.chunk_frames
    for chunk, errors in enumerate(itself):
        assert (errors.states["memory", 0] is None) == (chunk < window), f"chunk {chunk}"
        assert errors.states["window keys", 0] is not None


def test_another_plan_differs(perturbed):
    for errors in perturbed:
        assert all(error > 0 for error, _ in errors.steps)
        for error in (errors.guided, errors.free):
            assert error.latents[0] > 0 and error.psnr_db > 0


def test_states_differ_by_what_was_changed_and_what_follows(perturbed):
    """Given the same latents, the first block's keys and gates are equal, its values and their memory 1.5 times A's."""
    for errors in perturbed:
        for kind in ("window keys", "gate decay", "gate beta"):
            assert errors.states[kind, 0] == EXACT
            assert errors.states[kind, 1][0] > 0
        assert errors.states["window values", 0][0] == pytest.approx(0.5, abs=BIAS_SHARE)
    assert perturbed[-1].states["memory", 0][0] == pytest.approx(0.5, abs=BIAS_SHARE)


def test_the_guided_error_does_not_accumulate_and_the_free_one_does_not_shrink(perturbed):
    first, last = perturbed[:6], perturbed[-6:]
    guided = [np.mean([errors.guided.latents[0] for errors in part]) for part in (first, last)]
    free = [np.mean([errors.free.latents[0] for errors in part]) for part in (first, last)]
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
        assert errors.guided.latents == pytest.approx(difference(leader.sample, guided.sample), rel=1e-3)
        assert errors.guided.psnr_db == pytest.approx(psnr_db(*frames), rel=1e-3)


class Sampled:
    """A plan that is a sampler only."""

    def __init__(self, kind):
        self.manifest = type("Manifest", (), {"sampler": type("Sampler", (), {"kind": kind}), "window": ()})


@pytest.mark.parametrize("sigma_next", [0.4, 0.0], ids=["a step", "the last step"])
@pytest.mark.parametrize("kind", ["euler", "renoise"])
def test_the_velocity_is_what_the_sampler_was_given(kind, sigma_next):
    """From what the model's own sampler makes of two known velocities, their error is found again."""
    rng = np.random.default_rng(0)
    latent, noise, first, second = (rng.standard_normal((1, 3, 4, 4, 6), np.float32) for _ in range(4))
    config = small_preset().replace(transformer={"prediction": "flow"})
    levels = [np.array([level], np.float32) for level in (0.7, sigma_next)]
    inputs = {"latent": latent, "noise": noise, "sigma": levels[0], "sigma_next": levels[1]}

    def advanced(velocity):
        fresh = torch.from_numpy(noise) if kind == "renoise" else None
        tensors = (torch.from_numpy(values) for values in (latent, velocity, *levels))
        return {"latent_next": Step._advance(type("S", (), {"config": config}), *tensors, fresh).numpy()}

    errors = _StepErrors(Sampled(kind))
    errors.ran("step", inputs, advanced(first), advanced(second))
    (found,) = errors.taken()
    assert found == pytest.approx(difference(first, second), rel=VELOCITY_TOLERANCE)


def test_the_commits_error_is_that_of_keys_and_values(test_plan):
    rng = np.random.default_rng(1)
    names = [pair.present for pair in test_plan.manifest.window]
    first = {name: rng.standard_normal(6, np.float32) for name in names}
    second = {name: values + (0 if "key" in name or "value" in name else 1) for name, values in first.items()}
    errors, inputs = _StepErrors(test_plan), {"sigma": np.zeros(1, np.float32)}
    errors.ran("step", inputs, first, second)
    errors.ran("step", inputs, first, {name: 2 * values for name, values in first.items()})
    assert errors.taken() == [EXACT, (pytest.approx(1.0), pytest.approx(1.0))]
    assert errors.taken() == []


def test_states_are_read_where_the_commit_was_put(test_plan):
    """What a chunk's last pass left is looked for in the whole ring; nothing else may count."""
    committed = {}
    names = [pair.present for pair in test_plan.manifest.window]

    def on_run(engine, tensors):
        committed.update({name: values.copy() for name, values in tensors.items()})

    rollout = Rollout(test_plan, PROMPT, SEED, backend=TappedBackend({"step": names}, on_run))
    states = _States(test_plan)
    for chunk in islice(rollout, CHUNKS):
        tensors = rollout.snapshot().tensors
        elsewhere, here = ({name: values.copy() for name, values in tensors.items()} for _ in range(2))
        for name, values in committed.items():
            ring, size = tensors[f"window/{name}"], values.shape[1]
            (slot,) = (s for s in range(0, ring.shape[1], size) if np.array_equal(ring[:, s : s + size], values))
            elsewhere[f"window/{name}"] += 1
            elsewhere[f"window/{name}"][:, slot : slot + size] = values
            here[f"window/{name}"][:, slot : slot + size] += 1
        for key, error in states.errors(chunk.index, tensors, elsewhere).items():
            assert error in (EXACT, None), f"chunk {chunk.index}: {key}"
        for key, error in states.errors(chunk.index, tensors, here).items():
            assert key[0] == "memory" or error[0] > 0, f"chunk {chunk.index}: {key}"


def test_a_plan_that_makes_nan(test_plan, altered, scale_weight, tmp_path):
    broken = altered(tmp_path, "step", scale_weight("step", "transformer.blocks.1.self_attn.o", np.nan))
    sides = Contender(test_plan, "fp32"), Contender(broken, "fp32")
    message = r"^chunk 0, step 0 \(sigma 1\): velocity: got a value that is not finite"
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
