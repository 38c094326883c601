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
        known = self._registry = CollectorRegistry()
        ProcessCollector(registry=known)
        PlatformCollector(registry=known)
        self.streams = Gauge("videossm_streams", "Streams that exist", registry=known)
        self.viewers = Gauge("videossm_viewers", "Connections that frames are sent to", registry=known)
        self.chunk_s = Histogram("videossm_chunk_seconds", "Time that a chunk took", buckets=_CHUNK_S, registry=known)
        self.late_s = Histogram("videossm_late_seconds", "How late a chunk was begun", buckets=_CHUNK_S, registry=known)
        self.engine_s = Counter("videossm_engine_seconds", "Time inside each engine", ["engine"], registry=known)
        self.frames = Counter("videossm_frames", "Frames made", registry=known)
        self.missed = Counter("videossm_missed_chunks", "Chunks that a viewer was too slow for", registry=known)
        self.sent = Counter("videossm_sent_bytes", "Video sent to viewers", registry=known)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
