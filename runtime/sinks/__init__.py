"""Where frames go: a file by its extension, or raw frames on stdout for `-`."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from videossm.runtime.errors import SinkError

EXTENSIONS = (".mp4", ".gif", ".y4m", ".png")


class Sink(ABC):
    """Takes frames in order. What was written stays playable, whatever happens later. Closed by `with`."""

    files: list[str]  # what it has written

    @abstractmethod
    def write(self, frames: NDArray[Any]) -> None:
        """Frames uint8 [T, H, W, 3]. Raises SinkError when they cannot be written."""

    @abstractmethod
    def close(self) -> None:
        """Ends the file. Raises SinkError as `write` does."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def open_sink(output: str, width: int, height: int, fps: float, first_frame: int = 0) -> Sink:
    """`-` or a path. An existing file is overwritten in place, from the first frame that is written on.

    `first_frame`: number of the first picture of a sequence.

    Raises SinkError: unknown extension, missing folder, not writable.
    """
    if output == "-":
        from videossm.runtime.sinks.frames import RawSink

        if sys.stdout.isatty():
            raise SinkError("output: got -, a terminal, expected a pipe or a file; redirect stdout or give -o out.mp4")
        return RawSink(sys.stdout.buffer)
    path = Path(output)
    extension = path.suffix.lower()
    if extension not in EXTENSIONS or output.endswith(os.sep):
        raise SinkError(f"output: got {output}, expected {' '.join(EXTENSIONS)} or -; change the extension")
    if not path.parent.is_dir():
        raise SinkError(f"output: got {output}, expected a folder that exists; create {path.parent}")
    if path.is_dir():
        raise SinkError(f"output: got {output}, which is a folder, expected a file; choose another name")
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
