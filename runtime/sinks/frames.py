"""Sinks that store every frame by itself: raw bytes, PNG pictures, YUV4MPEG2."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from videossm.runtime.errors import SinkError
from videossm.runtime.output_file import check_output_file
from videossm.runtime.sinks import Sink
from videossm.runtime.sinks.whole import WholeFile, frame_rate, write_error


class RawSink(Sink):
    """rgb24, frame after frame, on a stream that is not ours to close. A reader that left raises BrokenPipeError."""

    def __init__(self, stream: BinaryIO, width: int, height: int) -> None:
        super().__init__(width, height)
        self._stream = stream
        self.files = ["-"]

    def _write(self, frames: NDArray[Any]) -> None:
        try:
            self._stream.write(np.ascontiguousarray(frames).data)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise write_error("stdout", error) from error

    def close(self) -> None:
        pass


class PngSink(Sink):
    """`out.png` becomes out-00000.png, out-00001.png, .., numbered by the frame's place in the video."""

    def __init__(self, path: Path, width: int, height: int, first_frame: int) -> None:
        super().__init__(width, height)
        self._path, self._number = path, first_frame
        check_output_file("output", self._next_path(), error=SinkError)
        self._first: WholeFile | None = None  # stays open, and with it locked
        self._codec: Any = av.CodecContext.create("png", "w")
        self._codec.width, self._codec.height, self._codec.pix_fmt = width, height, "rgb24"
        self._codec.time_base = Fraction(1, 1)
        self.files: list[str] = []

    def _write(self, frames: NDArray[Any]) -> None:
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = self._number
            content = b"".join(bytes(packet) for packet in self._codec.encode(frame))
            file = WholeFile(self._next_path())
            try:
                file.write(content)
                file.mark_whole()
            finally:
                if file.failed or self._first is not None:
                    file.close()
                else:
                    self._first = file
            self.files += file.written
            self._number += 1

    def close(self) -> None:
        if self._first is not None:
            self._first.close()

    def _next_path(self) -> Path:
        return self._path.with_name(f"{self._path.stem}-{self._number:05d}{self._path.suffix}")


class Y4mSink(Sink):
    """YUV4MPEG2, 4:4:4, full size planes: the form that measures take."""

    def __init__(self, path: Path, width: int, height: int, fps: float) -> None:
        super().__init__(width, height)
        self._file = WholeFile(path)
        self._header = b"YUV4MPEG2 W%d H%d F%d:%d Ip A1:1 C444\n" % (
            width,
            height,
            *frame_rate(fps).as_integer_ratio(),
        )
        self.files: list[str] = self._file.written

    def _write(self, frames: NDArray[Any]) -> None:
        for pixels in frames:
            planes = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv444p").to_ndarray()
            self._file.write(self._header + b"FRAME\n" + planes.tobytes())
            self._file.mark_whole()
            self._header = b""

    def close(self) -> None:
        self._file.close()
