"""What a rollout gives out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.backends import Transfer


class Chunk:
    """`frames`: uint8 [B, T, H, W, 3], the caller's to keep.

    `start_s`: time of the first frame in the video. A GPU makes the frames while the program goes on; asking for them
    waits, and `ready` says whether it would.
    """

    def __init__(self, index: int, start_s: float, frames: Transfer) -> None:
        self.index, self.start_s = index, start_s
        self._frames = frames

    @property
    def ready(self) -> bool:
        return self._frames.ready

    @property
    def frames(self) -> NDArray[np.uint8]:
        return self._frames.wait()
