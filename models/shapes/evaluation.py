"""How well generated videos follow their prompts, and whether they still do after a minute.

Works on anything that makes frames (`Generate`), so the same numbers come from a checkpoint in training, from
PyTorch and from an exported plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import numpy as np

from videossm.models.shapes.detector import Observation, observe
from videossm.models.shapes.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Prompt
from videossm.models.shapes.world import FPS

# (prompt, seed, frames) -> uint8 [frames, H, W, 3]
Generate = Callable[[str, int, int], np.ndarray]

# (first prompt, prompt that takes its place, seed, frames before the change, frames after it) -> frames after it
Steer = Callable[[str, str, int, int, int], np.ndarray]

NONE = "none"  # the column of what the detector could not name
SETTLE_SECONDS = 1  # after a change of prompt, not judged: one object turns into another
FINAL_SECONDS = 10  # the end of a long video, which endurance looks at
ATTRIBUTES = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS, "background": tuple(BACKGROUNDS)}


@dataclass(frozen=True)
class Confusion:
    """How often each label was seen where another was asked for."""

    labels: tuple[str, ...]
    counts: dict[str, dict[str, int]]  # [asked][seen]; seen includes `none`

    @staticmethod
    def of(labels: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Confusion:
        """From pairs of (asked, seen)."""
        counts = {asked: dict.fromkeys([*labels, NONE], 0) for asked in labels}
        for asked, seen in pairs:
            counts[asked][seen] += 1
        return Confusion(tuple(labels), counts)

    @property
    def accuracy(self) -> float:
        total = sum(sum(row.values()) for row in self.counts.values())
        return sum(self.counts[label][label] for label in self.labels) / total

    def to_markdown(self, title: str) -> str:
        """A table: rows are what was asked, columns what was seen."""
        rows = [[asked, *(str(count or "") for count in row.values())] for asked, row in self.counts.items()]
        return _table([f"{title}: asked, seen", *self.labels, NONE], rows)


@dataclass(frozen=True)
class AdherenceClip:
    """One generated clip, as the detector saw it; `none` where it could not tell."""

    prompt: str
    seed: int
    asked: dict[str, str]  # by attribute
    seen: dict[str, str]
    present: float  # share of the frames in which the object is there


@dataclass(frozen=True)
class Adherence:
    """The result of `evaluate_adherence`."""

    seconds: float
    clips: tuple[AdherenceClip, ...]
    confusions: dict[str, Confusion] = field(init=False)  # by attribute

    def __post_init__(self) -> None:
        tables = {
            name: Confusion.of(labels, [(clip.asked[name], clip.seen[name]) for clip in self.clips])
            for name, labels in ATTRIBUTES.items()
        }
        object.__setattr__(self, "confusions", tables)

    @property
    def accuracies(self) -> dict[str, float]:
        """Share of the clips in which each attribute is as asked, and `all`: the four at once."""
        right = {name: table.accuracy for name, table in self.confusions.items()}
        return {**right, "all": float(np.mean([clip.asked == clip.seen for clip in self.clips]))}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "seconds": self.seconds,
            "accuracies": self.accuracies,
            "confusions": {name: table.counts for name, table in self.confusions.items()},
            "clips": [asdict(clip) for clip in self.clips],
        }

    def to_markdown(self) -> str:
        """Accuracies, then one confusion table an attribute."""
        accuracies = [[name, f"{100 * share:.1f}%"] for name, share in self.accuracies.items()]
        parts = [
            f"{len(self.clips)} clips of {self.seconds:g} seconds. Empty cells are zero; `{NONE}`: nothing recognised.",
            _table(["attribute", "as asked"], accuracies),
            *(table.to_markdown(name) for name, table in self.confusions.items()),
        ]
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class EnduranceClip:
    """One long video, judged by its last `FINAL_SECONDS` seconds."""

    prompt: str
    seed: int
    colour: float  # share of the frames in which the object is there in the colour asked for
    shape: float  # share of the frames in which it is there in the shape asked for
    seen: dict[str, str]  # by attribute, over those frames together


@dataclass(frozen=True)
class Endurance:
    """The result of `evaluate_endurance`."""

    seconds: float
    clips: tuple[EnduranceClip, ...]

    @property
    def colour(self) -> float:
        return float(np.mean([clip.colour for clip in self.clips]))

    @property
    def shape(self) -> float:
        return float(np.mean([clip.shape for clip in self.clips]))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        clips = [asdict(clip) for clip in self.clips]
        return {"seconds": self.seconds, "colour": self.colour, "shape": self.shape, "clips": clips}

    def to_markdown(self) -> str:
        """One row a prompt, the last for all."""
        rows = [
            [clip.prompt, f"{100 * clip.colour:.1f}%", f"{100 * clip.shape:.1f}%", clip.seen["motion"]]
            for clip in self.clips
        ]
        rows.append(["**all**", f"{100 * self.colour:.1f}%", f"{100 * self.shape:.1f}%", ""])
        return (
            f"{len(self.clips)} videos of {self.seconds:g} seconds; share of the frames of the last "
            f"{FINAL_SECONDS} seconds in which the object is there as asked.\n\n"
            + _table(["prompt", "right colour", "right shape", "motion seen"], rows)
            + "\n"
        )


def adherence_cases(seeds: int) -> list[tuple[Prompt, int]]:
    """(prompt, seed) of every clip: all colour-shape pairs `seeds` times, each clip with its own seed.

    Latin squares spread the rest: every round of 18 has each motion three times (once with each shape) and
    each background six times.
    """
    cases: list[tuple[Prompt, int]] = []
    pairs = list(product(range(len(COLOURS)), range(len(SHAPES))))
    for turn, (colour, shape) in product(range(seeds), pairs):
        motion = (colour + 2 * shape + turn) % len(MOTIONS)
        background = (colour + shape + 2 * turn) % len(BACKGROUNDS)
        cases.append((_prompt(colour, shape, motion, background), len(cases)))
    return cases


def endurance_cases(prompts: int) -> list[tuple[Prompt, int]]:
    """(prompt, seed) of every long video; 12 prompts have every colour and motion twice, every shape four times."""
    return [
        (_prompt(i % len(COLOURS), (i + i // 6) % len(SHAPES), (5 * i + i // 6) % len(MOTIONS), (i // 2) % 3), i)
        for i in range(prompts)
    ]


def steering_cases() -> list[tuple[Prompt, Prompt, int]]:
    """(prompt, prompt that takes its place, seed): all colour-shape pairs, each after one that differs in two ways."""
    cases = adherence_cases(1)
    return [(cases[(7 * i + 5) % len(cases)][0], prompt, 1000 + seed) for i, (prompt, seed) in enumerate(cases)]


def evaluate_adherence(generate: Generate, seeds: int = 3, seconds: float = 5) -> Adherence:
    """Generates and judges 18 x `seeds` clips. Raises ValueError when `generate` returns anything but its frames."""
    clips = []
    for prompt, seed in adherence_cases(seeds):
        clips.append(_adherence_clip(prompt, seed, _frames(generate, prompt, seed, seconds)))
    return Adherence(seconds, tuple(clips))


def evaluate_steering(steer: Steer, seconds: float = 5) -> Adherence:
    """As `evaluate_adherence`, for the `seconds` that begin `SETTLE_SECONDS` after a change of prompt at `seconds`."""
    fps, clips = FPS, []
    before, settle, after = (round(time * fps) for time in (seconds, SETTLE_SECONDS, seconds))
    for first, prompt, seed in steering_cases():
        frames = steer(str(first), str(prompt), seed, before, settle + after)
        _check_count(frames, settle + after)
        clips.append(_adherence_clip(prompt, seed, frames[settle:]))
    return Adherence(seconds, tuple(clips))


def evaluate_endurance(generate: Generate, prompts: int = 12, seconds: float = 60) -> Endurance:
    """Generates `prompts` long videos and judges their ends. Raises ValueError as `evaluate_adherence` does."""
    clips = []
    for prompt, seed in endurance_cases(prompts):
        seen = observe(_frames(generate, prompt, seed, seconds)[-round(FINAL_SECONDS * FPS) :])
        colour, shape = _share(seen.colours, prompt.colour), _share(seen.shapes, prompt.shape)
        clips.append(EnduranceClip(str(prompt), seed, colour, shape, _labels(seen)))
    return Endurance(seconds, tuple(clips))


def _prompt(colour: int, shape: int, motion: int, background: int) -> Prompt:
    return Prompt(list(COLOURS)[colour], SHAPES[shape], MOTIONS[motion], list(BACKGROUNDS)[background])


def _adherence_clip(prompt: Prompt, seed: int, frames: np.ndarray) -> AdherenceClip:
    seen = observe(frames)
    asked = {name: getattr(prompt, name) for name in ATTRIBUTES}
    return AdherenceClip(str(prompt), seed, asked, _labels(seen), float(seen.present.mean()))


def _frames(generate: Generate, prompt: Prompt, seed: int, seconds: float) -> np.ndarray:
    count = round(seconds * FPS)
    frames = generate(str(prompt), seed, count)
    _check_count(frames, count)
    return frames


def _check_count(frames: np.ndarray, count: int) -> None:
    if len(frames) != count:
        raise ValueError(f"generate: got {len(frames)} frames, expected {count}; cut or continue the video")


def _labels(seen: Observation) -> dict[str, str]:
    return {name: getattr(seen, name) or NONE for name in ATTRIBUTES}


def _share(seen: Sequence[str | None], asked: str) -> float:
    return float(np.mean([value == asked for value in seen]))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
