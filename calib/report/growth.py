"""Does an error grow with the length of the video? Its first chunks against its last, and the line through all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Series = Sequence[float | None]  # one value a chunk, None where it is undefined

END_CHUNKS = 50  # at each end of a rollout; half of it where it is shorter


@dataclass(frozen=True)
class Growth:
    """`first`, `last`: means over the `chunks` at each end; `slope_per_100_chunks`: of the least-squares line."""

    chunks: int
    first: float
    last: float
    slope_per_100_chunks: float

    @property
    def ratio(self) -> float | None:
        """Last to first; None where the first is 0."""
        return self.last / self.first if self.first else None


def growth(series: Series) -> Growth | None:
    """Of the values that are defined; None where they are fewer than two."""
    chunks = [chunk for chunk, value in enumerate(series) if value is not None]
    values = [value for value in series if value is not None]
    if len(values) < 2:
        return None
    end = min(END_CHUNKS, len(values) // 2)
    slope, _ = np.polyfit(chunks, values, 1)
    first, last = float(np.mean(values[:end])), float(np.mean(values[-end:]))
    return Growth(end, first, last, 100 * float(slope))


def mean(series: Series) -> float | None:
    """Of the values that are defined; None where none is."""
    values = [value for value in series if value is not None]
    return float(np.mean(values)) if values else None
