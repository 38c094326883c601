"""The evaluation of a `shapes` model: do its videos show what was asked for, at 5 s, after a minute, at the end?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from videossm.models.family import Figure, Video
from videossm.models.shapes.detector import observe
from videossm.models.shapes.evaluation import (
    ATTRIBUTES,
    adherence_cases,
    endurance_cases,
    evaluate_adherence,
    evaluate_endurance,
)

ADHERENCE_SEEDS, ADHERENCE_S = 3, 5.0
ENDURANCE_PROMPTS, ENDURANCE_S = 12, 60.0
LENGTH_S, END_S = 75.0, 18.75  # of a long video, and the part of it that counts as its end
END_PARTS = 3  # clips that the end is judged in, of about the length of the short ones


class ShapesEvaluation:
    """54 short videos and 12 long ones."""

    def videos(self) -> list[Video]:
        """A case that is both short and long is made long."""
        lengths = {(str(prompt), seed): ADHERENCE_S for prompt, seed in adherence_cases(ADHERENCE_SEEDS)}
        lengths |= {(str(prompt), seed): LENGTH_S for prompt, seed in endurance_cases(ENDURANCE_PROMPTS)}
        return [Video(prompt, seed, seconds) for (prompt, seed), seconds in lengths.items()]

    def figures(self, frames: Mapping[Video, NDArray[np.uint8]], fps: float) -> Sequence[Figure]:
        """Of the frames [T, H, W, 3] of all `videos`."""
        made = {(video.prompt, video.seed): content for video, content in frames.items()}

        def generate(prompt: str, seed: int, count: int) -> NDArray[np.uint8]:
            return made[prompt, seed][:count]

        adherence = evaluate_adherence(generate, ADHERENCE_SEEDS, ADHERENCE_S)
        endurance = evaluate_endurance(generate, ENDURANCE_PROMPTS, ENDURANCE_S)
        short, long, end = f"{ADHERENCE_S:g} s", f"{ENDURANCE_S:g} s", f"last {END_S:g} of {LENGTH_S:g} s"
        figures = [
            Figure(short, name, 100 * share, len(adherence.clips)) for name, share in adherence.accuracies.items()
        ]
        figures.append(Figure(long, "colour", 100 * endurance.colour, ENDURANCE_PROMPTS))
        figures.append(Figure(long, "shape", 100 * endurance.shape, ENDURANCE_PROMPTS))
        last = math.floor(END_S * fps)
        ends = [(prompt, made[str(prompt), seed][-last:]) for prompt, seed in endurance_cases(ENDURANCE_PROMPTS)]
        clips = [(prompt, observe(part)) for prompt, content in ends for part in np.array_split(content, END_PARTS)]
        for name in ATTRIBUTES:
            right = [getattr(seen, name) == getattr(prompt, name) for prompt, seen in clips]
            figures.append(Figure(end, name, 100 * float(np.mean(right)), len(clips)))
        return figures
