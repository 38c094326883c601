"""A stream that is served: a rollout, who watches it, and what has been asked of it."""

from __future__ import annotations

import json
import secrets
import struct
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.errors import UserError
from videossm.runtime.rollout import Rollout
from videossm.runtime.sinks import side_by_side
from videossm.serve.encode import H264Encoder, JpegEncoder
from videossm.serve.errors import TooManyError
from videossm.serve.limits import Limits
from videossm.serve.metrics import Metrics
from videossm.serve.viewer import Viewer


class Stream:
    """Belongs to the thread that makes its chunks; `describe`, `watch` and `leave` may be called from any.

    `due_s`: when the next chunk is to be begun, on the monotonic clock.
    """

    def __init__(self, rollout: Rollout, limits: Limits, metrics: Metrics) -> None:
        self.id = secrets.token_hex(8)
        self.rollout = rollout
        self.paused = False
        self.problem: str | None = None  # why it cannot go on
        self.history: tuple[dict[str, Any], ...] = ()  # a new one for each change: other threads read it
        self._metrics, self._limits = metrics, limits
        self._viewers: frozenset[Viewer] = frozenset()
        self._over = False
        self._touched_s = monotonic()
        stream = rollout.plan.manifest.stream
        self._width, self._height, self._fps = stream.width * stream.batch, stream.height, stream.fps
        self._encoders: dict[str, H264Encoder | JpegEncoder] = {}
        self._chunk_s = stream.later_frames / stream.fps
        self._engines_s = rollout.timings
        self.due_s = monotonic() - self._chunk_s
        self.remember()

    @property
    def ended(self) -> bool:
        """Whether its clip is over."""
        return self.rollout.next_index == self.rollout.plan.manifest.stream.chunks

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for a chunk: nothing is made for nobody."""
        return bool(self._viewers) and not (self.paused or self.problem or self.ended)

    @property
    def idle_s(self) -> float:
        return 0.0 if self._viewers else monotonic() - self._touched_s

    def touch(self) -> None:
        self._touched_s = monotonic()

    def describe(self) -> dict[str, Any]:
        """As the API shows it."""
        stream, index = self.rollout.plan.manifest.stream, self.rollout.next_index
        return {
            "id": self.id,
            "prompts": self.rollout.prompts,
            "seeds": self.rollout.seeds,
            "paused": self.paused,
            "ended": self.ended,
            "problem": self.problem,
            "next_chunk": index,
            "next_start_s": stream.start_s(index),
            "viewers": len(self._viewers),
            "history": list(self.history),
        }

    def remember(self) -> None:
        """Puts the prompts that the next chunk follows on the time line, in place of those that none has followed."""
        start_s = self.rollout.plan.manifest.stream.start_s(self.rollout.next_index)
        entry = {"start_s": start_s, "prompts": self.rollout.prompts}
        kept = self.history
        if kept and kept[-1]["start_s"] == start_s:
            kept = kept[:-1]
        if not kept or kept[-1]["prompts"] != entry["prompts"]:
            kept = (*kept, entry)
        self.history = kept[-self._limits.history :]

    def pause(self, paused: bool) -> None:
        self.paused = paused
        self._forget_lateness()
        self.tell()

    def watch(self, form: str) -> Viewer:
        """A new viewer. Raises TooManyError."""
        if len(self._viewers) >= self._limits.viewers:
            raise TooManyError(f"viewers: got {len(self._viewers)} already, expected fewer; close one")
        if not self._viewers:
            self._forget_lateness()
        viewer = Viewer(form, self._limits.ahead_chunks)
        self._viewers |= {viewer}
        self._metrics.viewers.inc()
        if self._over or self.ended:  # asked once the viewer is among the others: `end` has told those it found
            viewer.end()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        if viewer in self._viewers:
            self._viewers -= {viewer}
            self._metrics.viewers.dec()
        self.touch()

    def count_sent(self, size_bytes: int) -> None:
        self._metrics.sent.inc(size_bytes)

    def advance(self) -> None:
        """Makes a chunk and hands it out; where that fails, the stream ends and says why, and no other is touched."""
        now_s = monotonic()
        self._metrics.late_s.observe(max(0.0, now_s - self.due_s - self._chunk_s))  # it is made one ahead
        self.due_s = max(self.due_s + self._chunk_s, now_s - self._chunk_s)
        try:
            self._make()
        except Exception as error:
            self.problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if self.ended or self.problem:
            self.end()

    def _make(self) -> None:
        started = perf_counter()
        chunk = next(self.rollout, None)
        if chunk is None:  # cancelled, as it is to go
            return
        frames = side_by_side(chunk.frames)
        took_s = perf_counter() - started
        engines_s = self.rollout.timings
        spent_s = {name: seconds - self._engines_s.get(name, 0.0) for name, seconds in engines_s.items()}
        self._engines_s = engines_s
        self._metrics.chunk_s.observe(took_s)
        self._metrics.frames.inc(len(frames))
        for name, seconds in spent_s.items():
            self._metrics.engine_s.labels(name).inc(max(0.0, seconds))
        facts = {
            "chunk": chunk.index,
            "start_s": chunk.start_s,
            "prompts": self.rollout.prompts,
            "chunk_ms": 1000 * took_s,
            "engines_ms": {name: 1000 * seconds for name, seconds in spent_s.items()},
        }
        self._hand_out(facts, frames)

    def tell(self) -> None:
        """What `describe` says has changed."""
        for viewer in self._viewers:
            viewer.tell()

    def end(self) -> None:
        """Nothing more comes; its viewers are told, and whoever comes later."""
        self._over = True
        for viewer in self._viewers:
            viewer.end()

    def _forget_lateness(self) -> None:
        """While nobody waited, nothing was due."""
        self.due_s = max(self.due_s, monotonic() - self._chunk_s)

    def _hand_out(self, facts: dict[str, Any], frames: NDArray[np.uint8]) -> None:
        """Encoded once for each form that somebody watches."""
        made: dict[str, Any] = {"rgb": frames}
        for viewer in self._viewers:
            if viewer.form not in made:
                made[viewer.form] = self._encoded(viewer.form, facts, frames)
            if not viewer.offer(made[viewer.form]):
                self._metrics.missed.inc()

    def _encoded(self, form: str, facts: dict[str, Any], frames: NDArray[np.uint8]) -> bytes:
        """A message: the length of its head (uint32, little-endian), the head as JSON, and the frames in a row."""
        if form not in self._encoders:
            self._encoders[form] = (
                H264Encoder(self._width, self._height, self._fps)
                if form == "h264"
                else JpegEncoder(self._width, self._height)
            )
        encoder = self._encoders[form]
        parts = encoder.encode(frames)
        head = json.dumps({**facts, "codec": encoder.codec, "sizes": [len(part) for part in parts]}).encode()
        return b"".join([struct.pack("<I", len(head)), head, *parts])
