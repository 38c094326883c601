"""The layer that is worst by construction costs most, and only it goes back where that is enough."""

from __future__ import annotations

import numpy as np
import pytest

from videossm.calib import sensitivity as module
from videossm.calib.calibration import Calibration
from videossm.calib.record import RecordingError
from videossm.calib.sensitivity import Fallback, Probe, Ranking, fall_back, hold_budget, probe_chunks, sensitivity
from videossm.runtime import Rollout

PROMPTS, SEEDS = ("red circle", "blue square"), (21, 22)
BROKEN = "transformer.blocks.0.ffn.2"  # alone reads its input
OTHERS = ("transformer.blocks.0.self_attn.q+k+v", "transformer.blocks.0.cross_attn.q", "transformer.blocks.1.ffn.0")
LAYERS = (*OTHERS, BROKEN)
ABSURD = 300  # times the scale: all values but the largest round to zero


@pytest.fixture(scope="module", autouse=True)
def few_starts():
    """The first chunk, and one whose window has rolled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STARTS", (0, 4))
        patch.setattr(module, "CHUNKS", 1)
        yield


@pytest.fixture(scope="module")
def probe(test_plan):
    return Probe(test_plan, PROMPTS, SEEDS)


@pytest.fixture(scope="module")
def calibration(int8_calibration):
    """With the scale of one tensor made absurd."""
    values = int8_calibration.model_dump(mode="json")
    tensor = values["tensors"]["step"]["gelu"]
    tensor.update({field: tensor[field] * ABSURD for field in ("amax", "low", "scale")})
    return Calibration.model_validate(values, strict=False)


@pytest.fixture(scope="module")
def errors(probe, calibration):
    return sensitivity(probe, calibration, LAYERS, lambda: None)


def test_an_error_is_that_of_rollouts_from_the_fp32_states(test_plan, probe, calibration, tmp_path):
    """Made by hand: a plan with the layer quantised, from where the fp32 rollout stood."""
    from videossm.calib.plans import write_quantized
    from videossm.runtime import Plan

    (tmp_path / "int8.plan").mkdir()
    write_quantized(test_plan, calibration, {BROKEN}, tmp_path / "int8.plan")
    expected = []
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        leader = Rollout(test_plan, prompt, seed)
        other = Rollout(Plan.open(tmp_path / "int8.plan"), prompt, seed)
        for chunk in range(5):
            other.restore(leader.snapshot())
            next(leader), next(other)
            if chunk in (0, 4):
                gap = np.linalg.norm(other.sample.astype(np.float64) - leader.sample)
                expected.append(gap / np.linalg.norm(leader.sample))
    assert probe.error(calibration, {BROKEN}) == pytest.approx(np.mean(expected), rel=1e-4)


def test_nothing_quantised_costs_nothing(probe, calibration):
    assert probe.error(calibration, set()) == 0


def test_the_layer_with_an_absurd_scale_ranks_first(errors):
    assert next(iter(errors)) == BROKEN
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert set(errors) == set(LAYERS)
    assert all(error > 0 for error in errors.values())
    assert errors[BROKEN] > 3 * list(errors.values())[1]


def test_attention_is_a_layer_too(probe, calibration):
    assert probe.error(calibration, {"transformer.blocks.1.self_attn.attention"}) > 0


def test_every_layer_is_counted(probe, calibration):
    counted = []
    sensitivity(probe, calibration, LAYERS[:2], lambda: counted.append(1))
    assert len(counted) == 2


def test_the_chunks_that_an_error_takes(test_plan, probe, calibration, monkeypatch):
    made = []
    plain = Rollout.__next__
    monkeypatch.setattr(Rollout, "__next__", lambda self: made.append(1) or plain(self))
    probe.error(calibration, {BROKEN})
    assert len(made) == probe_chunks(test_plan, len(SEEDS)) == 4


def test_only_the_worst_layer_goes_back_for_a_budget_between(probe, calibration, errors):
    before, without = probe.error(calibration, set(LAYERS)), probe.error(calibration, set(OTHERS))
    assert without < before
    fallback = fall_back(probe, calibration, errors, before, (before + without) / 2)
    assert fallback == Fallback((BROKEN,), pytest.approx(before), pytest.approx(without))


def test_nothing_is_ranked_for_a_budget_that_holds(probe, calibration, bars, said):
    before = probe.error(calibration, LAYERS)
    ranking = hold_budget(probe, calibration, LAYERS, 2 * before, bars, said.append)
    assert ranking == Ranking({}, probe.engines, 2 * before, Fallback((), before, before))
    assert (bars.seen, said) == ([], [])


def test_a_budget_that_does_not_hold(probe, calibration, errors, bars, said, monkeypatch):
    """Ranked, and announced as long work is."""
    monkeypatch.setattr("videossm.calib.progress.LONG_S", 0)
    before, without = probe.error(calibration, LAYERS), probe.error(calibration, OTHERS)
    ranking = hold_budget(probe, calibration, LAYERS, (before + without) / 2, bars, said.append)
    assert ranking.errors == errors
    assert ranking.fallback == Fallback((BROKEN,), before, without)
    assert (bars.seen, bars.stages) == ([("layer", len(LAYERS), len(LAYERS))], ["sensitivity"])
    assert len(said) == 1 and said[0].startswith("ranking of layers for --max-error: about ")


def test_everything_goes_back_for_a_budget_that_nothing_holds(probe, calibration, errors):
    fallback = fall_back(probe, calibration, errors, probe.error(calibration, LAYERS), 1e-12)
    assert fallback.layers == tuple(errors)
    assert fallback.error_after == 0


@pytest.mark.parametrize("keep", range(1, len(LAYERS)))
def test_as_few_layers_as_the_budget_allows(probe, calibration, errors, keep):
    """For the error that is left when `keep` of the costliest are back: no fewer would do."""
    ranked = list(errors)
    after = [probe.error(calibration, set(ranked[count:])) for count in range(len(ranked) + 1)]
    assert after == sorted(after, reverse=True), "else bisection proves nothing here"
    fallback = fall_back(probe, calibration, errors, after[0], after[keep])
    assert (fallback.layers, fallback.error_after) == (tuple(ranked[:keep]), after[keep])


def test_latents_that_are_not_finite(altered, scale_weight, calibration, tmp_path):
    broken = altered(tmp_path, "step", scale_weight("step", "transformer.blocks.1.self_attn.o", np.nan))
    with pytest.raises(RecordingError, match=f"^rollout with {BROKEN} quantised: got samples that are not finite"):
        Probe(broken, PROMPTS[:1], SEEDS[:1]).error(calibration, {BROKEN})
