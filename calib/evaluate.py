"""What the videos of a plan show, by the evaluation that its family of models gives.

Two plans part after some chunks, as chaotic systems do, and both may be right: what a precision costs over a long
rollout is judged by what the videos show.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from videossm.calib.plans import chunks_within
from videossm.runtime import Plan, Rollout
from videossm.runtime.backends import Backend

if TYPE_CHECKING:  # imports torch, which only an evaluation needs
    from videossm.models.family import Evaluation, Figure, Video


def find_evaluation(plan: Plan) -> Evaluation | None:
    """That of the plan's family; None where the family is not the repository's own, has none, or the batch is not 1."""
    from videossm.models.family import known_family

    family = known_family(plan.manifest.family)
    return None if family is None or plan.manifest.stream.batch != 1 else family.evaluation(plan.name)


def evaluation_chunks(plan: Plan, evaluation: Evaluation) -> int:
    """How many chunks `evaluate` makes."""
    return sum(_chunks(plan, video) for video in evaluation.videos())


def evaluate(
    plan: Plan,
    evaluation: Evaluation,
    on_chunk: Callable[[], object],
    backend: Callable[[], Backend] | None = None,
) -> Sequence[Figure]:
    """Rolls the videos out side by side, one thread each, which small engines use best, and has them judged.

    `on_chunk` is called after every chunk, from several threads. `backend` opens one in place of the plan's, of one
    thread.
    """

    def make(video: Video) -> NDArray[np.uint8]:
        """Frames [T, H, W, 3]."""
        rollout = Rollout(plan, video.prompt, video.seed, threads=1, backend=backend() if backend else None)
        parts = []
        for chunk in islice(rollout, _chunks(plan, video)):
            parts.append(chunk.frames[0])
            on_chunk()
        return np.concatenate(parts)

    videos = evaluation.videos()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        frames = dict(zip(videos, pool.map(make, videos), strict=True))
    return evaluation.figures(frames, plan.manifest.stream.fps)


def _chunks(plan: Plan, video: Video) -> int:
    return chunks_within(plan, plan.manifest.stream.chunk_at(video.seconds))
