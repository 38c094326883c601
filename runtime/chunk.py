"""What a rollout gives out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.backends import Transfer


class Chunk:
    """`frames`: uint8 [T, H, W, 3], or [B, T, H, W, 3] for a plan of batch B > 1; the caller's to keep.

    `start_s`: time of the first frame in the video. A GPU makes the frames while the program goes on; asking for them
    waits, and `ready` says whether it would.
    """

    def __init__(self, index: int, start_s: float, frames: NDArray[np.uint8] | Transfer) -> None:
        """`frames`: as they are given out, or [B, T, H, W, 3] on their way to the host, for any B."""
        self.index, self.start_s = index, start_s
        self._frames = frames

    @property
    def ready(self) -> bool:
        return isinstance(self._frames, np.ndarray) or self._frames.ready

    @property
    def frames(self) -> NDArray[np.uint8]:
        if not isinstance(self._frames, np.ndarray):
            streams = self._frames.wait()
            self._frames = streams if len(streams) > 1 else streams[0]
        return self._frames
