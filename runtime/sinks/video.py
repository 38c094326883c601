"""Sinks that encode video with PyAV: mp4 (H.264) and gif."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from videossm.runtime.errors import SinkError
from videossm.runtime.sinks import Sink
from videossm.runtime.sinks.whole import WholeFile, frame_rate

_GIF_MAX_FPS = 100  # it counts in hundredths of a second

MP4_FRAGMENTS = "frag_every_frame+empty_moov+default_base_moof"  # a fragment for every frame


def h264_options(fps: float) -> dict[str, str]:
    """Of libx264, with a frame to start from in every second.

    One thread: its output depends on their number. zerolatency: a chunk is out as soon as it is made.
    """
    gop = str(max(1, round(fps)))
    return {"preset": "veryfast", "tune": "zerolatency", "crf": "18", "g": gop, "threads": "1"}


class VideoSink(Sink):
    """An encoder and a container. What is in the file always plays, up to its last fragment."""

    def __init__(
        self, path: Path, width: int, height: int, fps: float, container: str, options: dict[str, str]
    ) -> None:
        super().__init__(width, height)
        self._file = WholeFile(path)
        self._rate = frame_rate(fps)
        self._count = 0
        self.files: list[str] = self._file.written
        flags = {"fflags": "+bitexact+flush_packets"}
        self._container: Any = av.open(self._file, "w", format=container, options={**flags, **options})

    def _write(self, frames: NDArray[Any]) -> None:
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = self._count, 1 / self._rate
            self._count += 1
            self._mux(frame)

    def close(self) -> None:
        """After an error there is nothing more to write."""
        try:
            if self._count and not self._file.failed:
                self._mux(None)
                with self._file.checked():
                    self._container.close()
        finally:
            self._file.close()

    def _encode(self, frame: av.VideoFrame | None) -> Iterable[Any]:
        """Packets that are ready; None for a frame drains the encoder."""
        raise NotImplementedError

    def _mux(self, frame: av.VideoFrame | None) -> None:
        """The muxer writes fragments whole, so what is there after a call plays."""
        with self._file.checked():
            for packet in self._encode(frame):
                self._container.mux(packet)
                self._file.mark_whole()


class Mp4Sink(VideoSink):
    """H.264, a fragment for every frame: a killed process leaves all but about the last one. Bit-exact."""

    def __init__(self, path: Path, width: int, height: int, fps: float) -> None:
        if width % 2 or height % 2:
            raise SinkError(f"output: got mp4 for {width}x{height}, expected even sides; write .gif, .y4m or .png")
        super().__init__(path, width, height, fps, "mp4", {"movflags": MP4_FRAGMENTS})
        self._stream: Any = self._container.add_stream("libx264", rate=self._rate, options=h264_options(fps))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"

    def _encode(self, frame: av.VideoFrame | None) -> Iterable[Any]:
        yield from self._stream.encode(frame)


class GifSink(VideoSink):
    """Endless gif, a palette for every frame."""

    def __init__(self, path: Path, width: int, height: int, fps: float) -> None:
        if fps > _GIF_MAX_FPS:
            raise SinkError(
                f"output: got gif for {fps:g} frames/s, expected at most {_GIF_MAX_FPS}; write .mp4, .y4m or .png"
            )
        super().__init__(path, width, height, fps, "gif", {"loop": "0"})
        self._stream: Any = self._container.add_stream("gif", rate=self._rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "pal8"
        self._graph = self._palette_graph(width, height)

    def _palette_graph(self, width: int, height: int) -> Any:
        graph = av.filter.Graph()
        source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / self._rate)
        split = graph.add("split")
        palette = graph.add("palettegen", "stats_mode=single")
        use = graph.add("paletteuse", "new=1:dither=none")
        sink = graph.add("buffersink")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        return graph

    def _encode(self, frame: av.VideoFrame | None) -> Iterable[Any]:
        self._graph.push(frame)
        for colours in self._pulled():
            yield from self._stream.encode(colours)
        if frame is None:
            yield from self._stream.encode(None)

    def _pulled(self) -> Iterator[av.VideoFrame]:
        while True:
            try:
                yield self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
