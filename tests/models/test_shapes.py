from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from videossm.models.shapes.detector import Observation, observe
from videossm.models.shapes.evaluation import (
    ATTRIBUTES,
    NONE,
    Adherence,
    AdherenceClip,
    adherence_cases,
    endurance_cases,
    evaluate_adherence,
    evaluate_endurance,
    evaluate_steering,
    steering_cases,
)
from videossm.models.shapes.tokenizer import build_tokenizer
from videossm.models.shapes.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Prompt, words
from videossm.models.shapes.world import World, render
from videossm.models.videossm.presets import SHAPES_VOCABULARY, shapes

STILL_RED_CIRCLE = Prompt("red", "circle", "stands still", "gray")


def blurred_and_noisy(video: np.ndarray, rng: np.random.Generator, blur: float = 1.0, noise: float = 8.0) -> np.ndarray:
    """A separable Gaussian of `blur` pixels within each frame, then noise of `noise` of 255; uint8 as given."""
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * blur**2))
    weights /= weights.sum()
    result = video.astype(np.float32)
    for axis in (1, 2):
        size = video.shape[axis]
        padded = np.pad(result, [(3, 3) if a == axis else (0, 0) for a in range(4)], mode="edge")
        result = sum(w * padded.take(range(i, i + size), axis) for i, w in enumerate(weights))
    return (result + rng.normal(0, noise, video.shape)).clip(0, 255).round().astype(np.uint8)


def prompt_of(text: str) -> Prompt:
    _, colour, shape, *motion, _, background = text.split()
    return Prompt(colour, shape, " ".join(motion), background)


def ground_truth(prompt: str, seed: int, frames: int) -> np.ndarray:
    return render(World.sample(prompt_of(prompt), np.random.default_rng(seed)), frames)


def as_asked(seen: Observation, asked: Prompt) -> bool:
    return all(getattr(seen, name) == getattr(asked, name) for name in ATTRIBUTES)


@pytest.mark.parametrize("degraded", [False, True], ids=["clean", "blur+noise"])
@pytest.mark.parametrize(("frames", "stride"), [(40, 1), (480, 11)], ids=["40 frames", "480 frames"])
def test_detector_reads_ground_truth(frames: int, stride: int, degraded: bool) -> None:
    rng = np.random.default_rng(3)
    cases = adherence_cases(seeds=3)[::stride]
    wrong, absent = [], 0.0
    for prompt, _ in cases:
        video = render(World.sample(prompt, rng), frames)
        seen = observe(blurred_and_noisy(video, rng) if degraded else video)
        absent += float(1 - seen.present.mean()) / len(cases)
        if not as_asked(seen, prompt):
            wrong.append(f"{prompt}: {seen.colour} {seen.shape} {seen.motion} {seen.background}")
    assert len(wrong) <= 0.01 * len(cases), wrong
    assert absent <= 0.01, f"object missed in {absent:.1%} of the frames"


def test_detector_measures_centre_and_area() -> None:
    world = World(Prompt("blue", "triangle", "moves right", "white"), x=60.0, y=30.0, vx=2.0, vy=0.0, diameter=20.0)
    seen = observe(render(world, 3))
    # Centre of mass: a third of the height above the base; around the right edge into the left one.
    expected = [[60, 30 + 20 / 6], [62, 30 + 20 / 6], [0, 30 + 20 / 6]]
    distance = abs((seen.centres - expected + 32) % 64 - 32)
    assert distance.max() < 0.3, f"centres {seen.centres.tolist()}, expected {expected}"
    assert abs(seen.areas - 200).max() < 15, f"areas {seen.areas.tolist()}, expected 200"


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_blank_frames_show_a_background_only(background: str) -> None:
    video = np.empty((20, 64, 64, 3), np.uint8)
    video[:] = BACKGROUNDS[background]
    seen = observe(blurred_and_noisy(video, np.random.default_rng(0)))
    assert not seen.present.any()
    assert (seen.background, seen.colour, seen.shape, seen.motion) == (background, None, None, None)
    assert np.isnan(seen.centres).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_half_an_object_has_no_shape(shape: str) -> None:
    video = render(World(Prompt("red", shape, "stands still", "gray"), 32, 32, 0, 0, 24.0), 20)
    video[:, :, 32:] = BACKGROUNDS["gray"]
    seen = observe(blurred_and_noisy(video, np.random.default_rng(0)))
    assert (seen.colour, seen.shape) == ("red", None)


@pytest.mark.parametrize("diameter", [5.0, 56.0], ids=["speck", "half of the frame"])
def test_an_implausible_size_is_no_object(diameter: float) -> None:
    assert not observe(render(World(STILL_RED_CIRCLE, 32, 32, 0, 0, diameter), 20)).present.any()


def test_a_pale_object_is_no_object() -> None:
    video = render(World(STILL_RED_CIRCLE, 32, 32, 0, 0, 20.0), 20)
    pale = (0.4 * video + 0.6 * np.array(BACKGROUNDS["gray"])).astype(np.uint8)
    assert not observe(pale).present.any()


def test_a_second_object_makes_the_frame_wrong() -> None:
    video = render(World(STILL_RED_CIRCLE, 16, 16, 0, 0, 20.0), 20)
    ghost = render(World(Prompt("blue", "square", "stands still", "gray"), 46, 46, 0, 0, 18.0), 20)
    there = (ghost != np.array(BACKGROUNDS["gray"], np.uint8)).any(-1)
    video[there] = ghost[there]
    assert not observe(video).present.any()


def test_a_speck_beside_the_object_changes_nothing() -> None:
    video = render(World(STILL_RED_CIRCLE, 16, 16, 0, 0, 20.0), 20)
    video[:, 40:45, 40:45] = COLOURS["blue"]
    assert as_asked(observe(video), STILL_RED_CIRCLE)


def test_an_object_that_vanishes_for_a_while_keeps_its_motion() -> None:
    prompt = Prompt("green", "square", "moves left", "white")
    video = render(World.sample(prompt, np.random.default_rng(0)), 40)
    video[10:20] = BACKGROUNDS["white"]
    seen = observe(video)
    assert as_asked(seen, prompt)
    assert seen.present.sum() == 30


@pytest.mark.parametrize("step", [(2, 2), (0, 0.4)], ids=["diagonally around the edges", "slow drift"])
def test_a_motion_outside_the_vocabulary_has_no_name(step: tuple[float, float]) -> None:
    frames = [render(World(STILL_RED_CIRCLE, 20 + t * step[0], 20 + t * step[1], 0, 0, 20.0), 1) for t in range(40)]
    assert observe(np.concatenate(frames)).motion is None


def test_frames_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got float32 \[2, 64, 64, 3\], expected uint8"):
        observe(np.zeros((2, 64, 64, 3), np.float32))


@pytest.mark.parametrize("seeds", [1, 3])
def test_adherence_cases_are_balanced(seeds: int) -> None:
    prompts = [prompt for prompt, _ in adherence_cases(seeds)]
    for name, labels in ATTRIBUTES.items():
        counts = {label: sum(getattr(prompt, name) == label for prompt in prompts) for label in labels}
        assert set(counts.values()) == {18 * seeds // len(labels)}, counts
    assert len({(p.colour, p.shape) for p in prompts}) == 18
    assert {(p.shape, p.motion) for p in prompts} == {(shape, motion) for shape in SHAPES for motion in MOTIONS}
    assert adherence_cases(seeds) == adherence_cases(seeds)


def test_endurance_cases_are_balanced() -> None:
    prompts = [prompt for prompt, _ in endurance_cases(12)]
    for name, labels in ATTRIBUTES.items():
        counts = {label: sum(getattr(prompt, name) == label for prompt in prompts) for label in labels}
        assert set(counts.values()) == {12 // len(labels)}, counts


def test_ground_truth_is_fully_adherent() -> None:
    result = evaluate_adherence(ground_truth, seeds=3)
    assert len(result.clips) == 54
    assert set(result.accuracies.values()) == {1.0}, result.to_markdown()
    assert json.loads(json.dumps(result.to_dict()))["confusions"]["motion"]["bounces"]["bounces"] == 9


def test_steering_judges_what_comes_after_the_change() -> None:
    def obey(first: str, second: str, seed: int, before: int, after: int) -> np.ndarray:
        settling = ground_truth(first, seed, 8)
        return np.concatenate([settling, ground_truth(second, seed, after - 8)])

    assert set(evaluate_steering(obey).accuracies.values()) == {1.0}, "the prompt that came second"
    ignored = evaluate_steering(lambda first, second, seed, before, after: ground_truth(first, seed, after))
    assert ignored.accuracies["all"] == 0.0 and ignored.accuracies["colour"] < 0.5, "the prompt that came first"
    with pytest.raises(ValueError, match="got 47 frames, expected 48"):
        evaluate_steering(lambda first, second, seed, before, after: ground_truth(second, seed, after - 1))


def test_a_change_of_prompt_changes_more_than_one_attribute() -> None:
    for first, second, _ in steering_cases():
        assert sum(getattr(first, name) != getattr(second, name) for name in ATTRIBUTES) > 1, f"{first}, {second}"


def test_a_generator_that_ignores_its_prompt_scores_as_chance() -> None:
    result = evaluate_adherence(lambda _, seed, frames: ground_truth(str(STILL_RED_CIRCLE), seed, frames), seeds=1)
    assert result.accuracies["colour"] == pytest.approx(1 / 6)
    assert result.accuracies["shape"] == pytest.approx(1 / 3)
    assert result.accuracies["motion"] == pytest.approx(1 / 6)
    assert result.confusions["colour"].counts["blue"] == {**dict.fromkeys([*COLOURS, NONE], 0), "red": 3}


def test_a_generator_of_blank_frames_scores_nothing() -> None:
    result = evaluate_adherence(lambda _, seed, frames: np.zeros((frames, 64, 64, 3), np.uint8), seeds=1)
    assert [result.accuracies[name] for name in ("colour", "shape", "motion", "all")] == [0, 0, 0, 0]
    assert result.confusions["shape"].counts["circle"][NONE] == 6


def test_endurance_looks_at_the_last_ten_seconds() -> None:
    fading_frames = round(2.5 * shapes().fps)

    def fades(prompt: str, seed: int, frames: int) -> np.ndarray:
        video = ground_truth(prompt, seed, frames)
        video[: frames // 2] = 0
        video[-fading_frames:] = 0
        return video

    result = evaluate_endurance(fades, prompts=2, seconds=20)
    assert (result.colour, result.shape) == (0.75, 0.75)
    assert evaluate_endurance(ground_truth, prompts=3, seconds=60).to_dict()["colour"] == 1


def test_a_video_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="got 39 frames, expected 40"):
        evaluate_adherence(lambda prompt, seed, frames: ground_truth(prompt, seed, frames - 1), seeds=1)


def test_confusion_table_as_markdown() -> None:
    asked = {"colour": "red", "shape": "circle", "motion": "bounces", "background": "gray"}
    clip = AdherenceClip("a red circle bounces on gray", 0, asked, {**asked, "shape": "square", "motion": NONE}, 1.0)
    text = Adherence(5, (clip,)).to_markdown()
    assert "| shape: asked, seen | circle | square | triangle | none |" in text
    assert "| circle |  | 1 |  |  |" in text
    assert "| motion | 0.0% |" in text


def test_evaluation_loads_no_torch() -> None:
    code = "import sys, videossm.models.shapes.evaluation; print({'torch', 'onnx'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_tokenizer_ids_are_stable() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.get_vocab_size() <= SHAPES_VOCABULARY
    assert [tokenizer.token_to_id(token) for token in ("[PAD]", "[UNK]", "a", "an", "on", "red")] == [0, 1, 2, 3, 4, 5]
    assert [tokenizer.token_to_id(word) for word in words()] == list(range(2, 2 + len(words())))


def test_tokenizer_ignores_case_and_spaces() -> None:
    tokenizer = build_tokenizer()
    plain = tokenizer.encode("a red circle stands still on gray").ids
    assert tokenizer.encode("  A Red  CIRCLE stands\tstill on GRAY ").ids == plain
    assert len(plain) == 7
    assert min(plain) > 1


def test_tokenizer_knows_every_prompt_and_no_other_word() -> None:
    tokenizer = build_tokenizer()
    for prompt, _ in adherence_cases(1):
        assert 1 not in tokenizer.encode(str(prompt)).ids, prompt
    assert tokenizer.encode("a pink circle").ids[1] == 1
    assert tokenizer.encode("a [pad] circle").ids[1] == 1
