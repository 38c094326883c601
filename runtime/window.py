"""The window as a ring: which chunk lies in which slot, what positions the step sees, what is evicted.

All of it follows from the number of committed chunks, so a state on disk needs no table of slots.
A slot is one latent frame of the window; a chunk slot is `chunk_frames` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videossm.runtime.manifest import Stream

EMPTY = -1
_RHO_MIN = 1e-3


@dataclass(frozen=True)
class Ring:
    """Sizes in chunks, but for `chunk_frames`; `window` counts the past chunks kept, `sink` among them."""

    chunk_frames: int
    window: int
    sink: int
    absolute: bool  # positions: index in the video, else rank in the window

    @staticmethod
    def of(stream: Stream) -> Ring:
        return Ring(
            chunk_frames=stream.chunk_frames,
            window=stream.window_frames // stream.chunk_frames,
            sink=stream.sink_frames // stream.chunk_frames,
            absolute=stream.rope_frame == "absolute",
        )

    def chunk_slot(self, chunk: int) -> int:
        """The chunk slot of a chunk: the sink keeps its place, the others go round behind it."""
        if chunk < self.window:
            return chunk
        return self.sink + (chunk - self.sink) % (self.window - self.sink)

    def held(self, chunk: int) -> list[int]:
        """The chunks that lie in the window while `chunk` is made, in video order."""
        if chunk <= self.window:
            return list(range(chunk))
        return [*range(self.sink), *range(chunk - self.window + self.sink, chunk)]

    def evicts(self, chunk: int) -> bool:
        """Does committing `chunk` push another out of its slot?"""
        return chunk >= self.window

    def positions(self, chunk: int, visible: Sequence[int]) -> tuple[list[int], list[int]]:
        """(position of every slot's frame, EMPTY where nothing is; positions of this chunk's frames).

        `visible` are the chunks that count as present, in video order.
        """
        slots = [EMPTY] * (self.window * self.chunk_frames)
        for rank, other in enumerate(visible):
            start = self.chunk_slot(other) * self.chunk_frames
            slots[start : start + self.chunk_frames] = self._frames(other if self.absolute else rank)
        return slots, self._frames(chunk if self.absolute else len(visible))

    def rho(self, chunk: int) -> float:
        """Router input while `chunk` is made: evicted / seen frames, clamped to [1e-3, 1]."""
        evicted = max(0, chunk - self.window)
        return min(max(evicted / chunk, _RHO_MIN), 1.0) if chunk else _RHO_MIN

    def _frames(self, place: int) -> list[int]:
        return list(range(place * self.chunk_frames, (place + 1) * self.chunk_frames))
