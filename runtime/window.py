"""The window as a ring: which chunk lies in which slot, what positions the passes see, what is evicted.

All of it follows from the number of committed chunks, so a state on disk needs no table of slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videossm.runtime.manifest import Window

EMPTY = -1
_RHO_MIN = 1e-3


@dataclass(frozen=True)
class Ring:
    """The arithmetic of a manifest's window; all counts are of chunks, but for `window.chunk_frames`."""

    window: Window

    def chunk_slot(self, chunk: int) -> int:
        """The slot of a chunk: the sink keeps its place, the others go round behind it."""
        if chunk < self.window.chunks:
            return chunk
        return self.window.sink + (chunk - self.window.sink) % (self.window.chunks - self.window.sink)

    def held(self, chunk: int) -> list[int]:
        """The chunks that lie in the window while `chunk` is made, in video order."""
        if chunk <= self.window.chunks:
            return list(range(chunk))
        return [*range(self.window.sink), *range(chunk - self.window.chunks + self.window.sink, chunk)]

    def evicts(self, chunk: int) -> bool:
        """Whether `chunk` takes the slot of another one."""
        return chunk >= self.window.chunks

    def positions(self, chunk: int, visible: Sequence[int]) -> tuple[list[int], list[int]]:
        """(position of every slot's frame, EMPTY where nothing is; positions of this chunk's frames).

        `visible`: the chunks of the window that `chunk` sees, in video order.
        """
        size, absolute = self.window.chunk_frames, self.window.positions == "absolute"
        slots = [EMPTY] * (self.window.chunks * size)
        for rank, other in enumerate(visible):
            start = self.chunk_slot(other) * size
            slots[start : start + size] = self._frames(other if absolute else rank)
        return slots, self._frames(chunk if absolute else len(visible))

    def rho(self, chunk: int) -> float:
        """Evicted / seen chunks while `chunk` is made, clamped to [1e-3, 1]."""
        evicted = max(0, chunk - self.window.chunks)
        return min(max(evicted / chunk, _RHO_MIN), 1.0) if chunk else _RHO_MIN

    def _frames(self, place: int) -> list[int]:
        size = self.window.chunk_frames
        return list(range(place * size, (place + 1) * size))
