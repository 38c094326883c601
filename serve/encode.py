"""Frames on their way to a browser: H.264 for WebCodecs, JPEG, and MP4 in fragments."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from videossm.runtime.sinks.video import MP4_FRAGMENTS, h264_options
from videossm.runtime.sinks.whole import frame_rate

_SPS = 7  # type of the H.264 unit that names its profile and level
_JPEG_QUALITY = 3  # of 2, the best, to 31


class H264Encoder:
    """Each chunk begins with a frame that needs none before it, so a viewer may miss whole chunks."""

    def __init__(self, width: int, height: int, fps: float) -> None:
        self._context: Any = av.CodecContext.create("libx264", "w")
        self._context.width, self._context.height, self._context.pix_fmt = width, height, "yuv420p"
        self._context.time_base = 1 / frame_rate(fps)
        # Without the colour space, browsers and players guess differently.
        colours = "colorprim=bt709:transfer=bt709:colormatrix=bt709"
        own = {"profile": "baseline", "forced-idr": "1", "x264-params": colours}
        self._context.options = {**h264_options(fps), **own}
        self._count = 0
        self.codec = ""  # as WebCodecs names it; known after the first chunk

    def encode(self, frames: NDArray[np.uint8]) -> list[bytes]:
        """[T, H, W, 3] to an access unit (Annex B) each."""
        units = []
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            frame.pict_type = PictureType.NONE if number else PictureType.I
            frame.pts, self._count = self._count, self._count + 1
            units.append(b"".join(bytes(packet) for packet in self._context.encode(frame)))
        self.codec = self.codec or _codec(units[0])
        return units


class JpegEncoder:
    """A picture by itself each."""

    def __init__(self, width: int, height: int) -> None:
        self._context: Any = av.CodecContext.create("mjpeg", "w")
        self._context.width, self._context.height, self._context.pix_fmt = width, height, "yuvj444p"
        self._context.time_base = Fraction(1, 1)
        self._context.qmin = self._context.qmax = _JPEG_QUALITY
        self.codec = "jpeg"

    def encode(self, frames: NDArray[np.uint8]) -> list[bytes]:
        """[T, H, W, 3] to a JPEG file each."""
        pictures = []
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuvj444p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG)
            pictures.append(b"".join(bytes(packet) for packet in self._context.encode(frame)))
        return pictures


class _Written:
    """What PyAV takes for a file. Not the muxer itself: the two would hold each other for ever."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, content: bytes) -> int:
        self.content += content
        return len(content)


class Mp4Fragments:
    """An MP4 without end, whose first bytes are all that a player needs to begin."""

    def __init__(self, width: int, height: int, fps: float) -> None:
        self._written = _Written()
        self._rate = frame_rate(fps)
        flags = {"fflags": "+bitexact+flush_packets", "movflags": MP4_FRAGMENTS}
        self._container: Any = av.open(self._written, "w", format="mp4", options=flags)
        self._stream: Any = self._container.add_stream("libx264", rate=self._rate, options=h264_options(fps))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._count = 0

    def encode(self, frames: NDArray[np.uint8]) -> bytes:
        """What [T, H, W, 3] adds to the file."""
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = self._count, 1 / self._rate
            self._count += 1
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        content = bytes(self._written.content)
        self._written.content.clear()
        return content


def _codec(unit: bytes) -> str:
    """`avc1.PPCCLL` of an access unit that begins with its parameter sets."""
    for start in range(len(unit) - 7):
        if unit[start : start + 3] == b"\0\0\1" and unit[start + 3] & 31 == _SPS:
            return f"avc1.{unit[start + 4 : start + 7].hex()}"
    raise AssertionError("x264 puts the parameter sets before each frame that can be started from")
