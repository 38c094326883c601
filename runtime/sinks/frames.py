"""Sinks that store every frame by itself: raw bytes, PNG pictures, YUV4MPEG2."""

from __future__ import annotations

import contextlib
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from videossm.runtime.sinks import Sink
from videossm.runtime.sinks.whole import WholeFile, frame_rate, write_error


class RawSink(Sink):
    """rgb24, frame after frame, on a stream that is not ours to close. A reader that left raises BrokenPipeError."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.files = ["-"]

    def write(self, frames: NDArray[Any]) -> None:
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
        try:
            with tempfile.TemporaryFile(dir=path.parent):  # before any work is done
                pass
        except OSError as error:
            raise write_error(path, error) from error
        self._path, self._number = path, first_frame
        self._codec: Any = av.CodecContext.create("png", "w")
        self._codec.width, self._codec.height, self._codec.pix_fmt = width, height, "rgb24"
        self._codec.time_base = Fraction(1, 1)
        self.files: list[str] = []

    def write(self, frames: NDArray[Any]) -> None:
        for pixels in frames:
            path = self._path.with_name(f"{self._path.stem}-{self._number:05d}{self._path.suffix}")
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = self._number
            content = b"".join(bytes(packet) for packet in self._codec.encode(frame))
            try:
                path.write_bytes(content)
            except OSError as error:
                with contextlib.suppress(OSError):
                    path.unlink()  # half a picture
                raise write_error(path, error) from error
            self.files.append(str(path))
            self._number += 1

    def close(self) -> None:
        pass


class Y4mSink(Sink):
    """YUV4MPEG2, 4:4:4, full size planes: the form that measures take."""

    def __init__(self, path: Path, width: int, height: int, fps: float) -> None:
        self._file = WholeFile(path)
        self._header = b"YUV4MPEG2 W%d H%d F%d:%d Ip A1:1 C444\n" % (
            width,
            height,
            *frame_rate(fps).as_integer_ratio(),
        )
        self.files: list[str] = self._file.written

    def write(self, frames: NDArray[Any]) -> None:
        for pixels in frames:
            planes = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv444p").to_ndarray()
            self._file.write(self._header + b"FRAME\n" + planes.tobytes())
            self._file.mark_whole()
            self._header = b""

    def close(self) -> None:
        self._file.close()
