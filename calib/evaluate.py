"""The shapes evaluation of a plan: does the video show what its prompt says, at 5 s, after a minute, at the end.

Two plans part after some chunks, as chaotic systems do, and both may be right: what a precision costs over a long
rollout is judged by what the videos show.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from videossm.models.shapes.detector import observe
from videossm.models.shapes.evaluation import (
    ATTRIBUTES,
    adherence_cases,
    endurance_cases,
    evaluate_adherence,
    evaluate_endurance,
)
from videossm.runtime import Plan, Rollout
from videossm.runtime.backends import Backend

ADHERENCE_SEEDS, ADHERENCE_S = 3, 5.0
ENDURANCE_PROMPTS, ENDURANCE_S = 12, 60.0
CHUNKS, LAST_CHUNKS = 200, 50  # length of a long rollout, and the part of it that counts as its end
END_PARTS = 3  # clips that the end is judged in, of about the length of the short ones


@dataclass(frozen=True)
class Share:
    """Of `videos`, or clips cut from them, `percent` show what was asked."""

    percent: float
    videos: int


_Case = tuple[str, int]  # prompt, seed


def can_evaluate(plan: Plan) -> bool:
    """Whether the plan makes the world that the evaluation knows."""
    return plan.name == "shapes" and plan.manifest.stream.batch == 1


def evaluation_chunks(plan: Plan) -> int:
    """How many chunks `evaluate` makes."""
    return sum(_lengths(plan).values())


def evaluate(
    plan: Plan, on_chunk: Callable[[], object], backend: Callable[[], Backend] | None = None
) -> dict[tuple[str, str], Share]:
    """Figures by (when, what). `on_chunk` is called after every chunk, from several threads.

    `backend` opens one in place of the plan's, of one thread.
    """
    videos = _videos(plan, _lengths(plan), on_chunk, backend)

    def generate(prompt: str, seed: int, frames: int) -> NDArray[np.uint8]:
        return videos[prompt, seed][:frames]

    adherence = evaluate_adherence(generate, ADHERENCE_SEEDS, ADHERENCE_S)
    endurance = evaluate_endurance(generate, ENDURANCE_PROMPTS, ENDURANCE_S)
    short, long = f"{ADHERENCE_S:g} s", f"{ENDURANCE_S:g} s"
    figures = {(short, name): Share(100 * share, len(adherence.clips)) for name, share in adherence.accuracies.items()}
    figures[long, "colour"] = Share(100 * endurance.colour, ENDURANCE_PROMPTS)
    figures[long, "shape"] = Share(100 * endurance.shape, ENDURANCE_PROMPTS)
    last = LAST_CHUNKS * plan.manifest.stream.frames_per_chunk
    ends = [(prompt, videos[str(prompt), seed][-last:]) for prompt, seed in endurance_cases(ENDURANCE_PROMPTS)]
    clips = [(prompt, observe(part)) for prompt, frames in ends for part in np.array_split(frames, END_PARTS)]
    for name in ATTRIBUTES:
        right = [getattr(seen, name) == getattr(prompt, name) for prompt, seen in clips]
        figures[f"last {LAST_CHUNKS} of {CHUNKS} chunks", name] = Share(100 * float(np.mean(right)), len(clips))
    return figures


def _videos(
    plan: Plan, lengths: dict[_Case, int], on_chunk: Callable[[], object], backend: Callable[[], Backend] | None
) -> dict[_Case, NDArray[np.uint8]]:
    """Frames [T, H, W, 3] of every case; rollouts side by side, one thread each, which small engines use best."""

    def make(case: _Case) -> NDArray[np.uint8]:
        rollout = Rollout(plan, *case, threads=1, backend=backend() if backend else None)
        parts = []
        for chunk in islice(rollout, lengths[case]):
            parts.append(chunk.frames)
            on_chunk()
        return np.concatenate(parts)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(lengths, pool.map(make, lengths), strict=True))


def _lengths(plan: Plan) -> dict[_Case, int]:
    """Chunks of every case; one that is both short and long is made long."""
    short = int(np.ceil(ADHERENCE_S / plan.chunk_seconds - 1e-9))
    lengths = {(str(prompt), seed): short for prompt, seed in adherence_cases(ADHERENCE_SEEDS)}
    return lengths | {(str(prompt), seed): CHUNKS for prompt, seed in endurance_cases(ENDURANCE_PROMPTS)}
