"""Where frames go: a file by its extension, or raw frames on stdout for `-`."""

from __future__ import annotations

import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.errors import SinkError, shown
from videossm.runtime.output_file import check_output_file

EXTENSIONS = (".mp4", ".gif", ".y4m", ".png")


class Sink(ABC):
    """Takes frames in order. What was written stays playable, whatever happens later. Closed by `with`."""

    files: list[str]  # what it has written

    def __init__(self, width: int, height: int) -> None:
        self._size = (height, width, 3)

    def write(self, frames: NDArray[Any]) -> None:
        """Frames uint8 [T, H, W, 3] of the sink's size. Raises SinkError: others, or they cannot be written."""
        if frames.ndim != 4 or frames.shape[1:] != self._size or frames.dtype != "uint8":
            got, size = f"{frames.dtype} {list(frames.shape)}", ", ".join(map(str, self._size))
            raise SinkError(f"frames: got {got}, expected uint8 [T, {size}]; open the sink for frames of that size")
        self._write(frames)

    @abstractmethod
    def _write(self, frames: NDArray[Any]) -> None:
        """Checked frames."""

    @abstractmethod
    def close(self) -> None:
        """Ends the file. Raises SinkError as `write` does."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def side_by_side(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pictures of a batch [B, T, H, W, 3] as one, [T, H, B x W, 3]."""
    return frames[0] if len(frames) == 1 else np.concatenate(list(frames), axis=2)


def check_sink(output: str | Path, inputs: Iterable[Path] = ()) -> None:
    """Raises SinkError where `open_sink` would for that `output`, and where it is among `inputs`. Writes nothing."""
    if str(output) == "-":
        if sys.stdout is None or sys.stdout.closed:
            raise SinkError("output: got -, but stdout is closed, expected a pipe or a file; redirect it")
        if sys.stdout.isatty():
            raise SinkError("output: got -, a terminal, expected a pipe or a file; redirect stdout or give -o out.mp4")
        return
    path = Path(output)
    if path.suffix.lower() not in EXTENSIONS or str(output).endswith(os.sep):
        raise SinkError(f"output: got {shown(str(output))}, expected {' '.join(EXTENSIONS)} or -; change the extension")
    check_output_file("output", path, inputs, SinkError)


def open_sink(output: str | Path, width: int, height: int, fps: float, first_frame: int = 0) -> Sink:
    """`-` or a path. An existing file is overwritten in place, from the first frame that is written on.

    `width`, `height`: of the frames. `first_frame`: number of the first picture of a sequence.

    Raises SinkError: unknown extension, missing folder, not writable, no regular file, size or fps below 1 or 0.
    """
    check_sink(output)
    if min(width, height) < 1:
        raise SinkError(f"output: got frames of {width}x{height}, expected sides of 1 or more; change them")
    if not (math.isfinite(fps) and fps > 0):
        raise SinkError(f"output: got {fps:g} frames/s, expected more than 0; change it")
    if str(output) == "-":
        from videossm.runtime.sinks.frames import RawSink

        return RawSink(sys.stdout.buffer, width, height)
    path = Path(output)
    extension = path.suffix.lower()
    if extension == ".png":
        from videossm.runtime.sinks.frames import PngSink

        return PngSink(path, width, height, first_frame)
    if extension == ".y4m":
        from videossm.runtime.sinks.frames import Y4mSink

        return Y4mSink(path, width, height, fps)
    if extension == ".gif":
        from videossm.runtime.sinks.video import GifSink

        return GifSink(path, width, height, fps)
    from videossm.runtime.sinks.video import Mp4Sink

    return Mp4Sink(path, width, height, fps)
