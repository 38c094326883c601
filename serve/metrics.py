"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_CHUNK_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Of one server; names and units as Prometheus wants them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        known = {"registry": self._registry}
        self.streams = Gauge("videossm_streams", "Streams that exist", **known)
        self.viewers = Gauge("videossm_viewers", "Connections that frames are sent to", **known)
        self.chunk_s = Histogram("videossm_chunk_seconds", "Time that a chunk took", buckets=_CHUNK_S, **known)
        self.late_s = Histogram("videossm_late_seconds", "How late a chunk was begun", buckets=_CHUNK_S, **known)
        self.engine_s = Counter("videossm_engine_seconds", "Time inside each engine", ["engine"], **known)
        self.frames = Counter("videossm_frames", "Frames made", **known)
        self.missed = Counter("videossm_missed_chunks", "Chunks that a viewer was too slow for", **known)
        self.sent = Counter("videossm_sent_bytes", "Video sent to viewers", **known)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
