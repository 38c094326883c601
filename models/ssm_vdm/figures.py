"""The evaluation of the small models: is there one object, of one colour and shape, and does it stay and move on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videossm.models.family import Figure, Video
from videossm.models.shapes.detector import Observation, observe
from videossm.models.shapes.evaluation import ATTRIBUTES, adherence_cases, endurance_cases
from videossm.models.shapes.world import SIZE

SAMPLES, ROUNDS = 64, 4  # short videos, of so many rounds of all colours and shapes
LONG_VIDEOS, LONG_S, END_S = 12, 60.0, 10.0  # of a stream
JUMP = 4.0  # pixels a frame: twice the fastest motion


@dataclass(frozen=True)
class ObjectEvaluation:
    """64 short videos and, of a stream, 12 long ones.

    `seconds`: of a short one. `chunk`: frames of a stream's chunk, over whose borders motion must go on; 0 for clips.
    """

    seconds: float
    chunk: int = 0

    def videos(self) -> list[Video]:
        """Each with a seed of its own."""
        short = [Video(str(prompt), seed, self.seconds) for prompt, seed in adherence_cases(ROUNDS)[:SAMPLES]]
        long = endurance_cases(LONG_VIDEOS) if self.chunk else []
        return short + [Video(str(prompt), SAMPLES + seed, LONG_S) for prompt, seed in long]

    def figures(self, frames: Mapping[Video, NDArray[np.uint8]], fps: float) -> Sequence[Figure]:
        """Of the frames [T, H, W, 3] of all `videos`."""
        seen = {video: observe(content) for video, content in frames.items()}
        short = {video: found for video, found in seen.items() if video.seconds == self.seconds}
        shares = {"one colour and one shape": [bool(found.colour and found.shape) for found in short.values()]}
        for names in (("colour", "shape"), *((name,) for name in ATTRIBUTES)):
            right = [
                all((getattr(found, n) or "none") in video.prompt for n in names) for video, found in short.items()
            ]
            shares[f"{' and '.join(names)} as asked"] = right
        at = f"{self.seconds:g} s"
        figures = [Figure(at, what, 100 * float(np.mean(share)), len(short)) for what, share in shares.items()]
        return figures + (self._long([seen[video] for video in seen.keys() - short.keys()], fps) if self.chunk else [])

    def _long(self, videos: Sequence[Observation], fps: float) -> list[Figure]:
        last = round(END_S * fps)
        present = float(np.mean([found.present[-last:].mean() for found in videos]))
        moved = [_moved(found.centres) for found in videos]
        border = np.arange(1, len(moved[0]) + 1) % self.chunk == 0
        figures = [Figure(f"last {END_S:g} of {LONG_S:g} s", "frames with an object", 100 * present, len(videos))]
        for what, which in (("within a chunk", ~border), ("from chunk to chunk", border)):
            steps = np.concatenate([lengths[which] for lengths in moved])
            steps = steps[~np.isnan(steps)]
            share = 100 * float((steps <= JUMP).mean()) if len(steps) else 0.0
            figures.append(Figure(f"{LONG_S:g} s", f"steps up to {JUMP:g} pixels {what}", share, len(videos)))
        return figures


def _moved(centres: NDArray[np.floating]) -> NDArray[np.floating]:
    """Pixels from frame to frame, the shorter way around the torus: [T - 1], NaN where there is no object."""
    steps = (np.diff(centres, axis=0) + SIZE / 2) % SIZE - SIZE / 2
    return np.linalg.norm(steps, axis=1)
