"""A file that only ever keeps whole parts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from videossm.runtime.errors import SinkError
from videossm.runtime.output_file import check_output_file

_MAX_RATE_DENOMINATOR = 1001  # as in 24000/1001


def frame_rate(fps: float) -> Fraction:
    """Frames a second as a fraction that containers can hold."""
    return Fraction(fps).limit_denominator(_MAX_RATE_DENOMINATOR)


def write_error(where: object, error: OSError) -> SinkError:
    """The system's error as one of ours."""
    return SinkError(f"output: cannot write {where} ({error.strerror}); choose a place that is writable and has room")


def _lock(descriptor: int) -> bool:
    """Keeps other sinks out of a file until it is closed; False if one has it already."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: two runs are not kept apart there
        pass
    return True


class WholeFile:
    """Written from start to end. When the disk is full it is cut back to the last `mark_whole`.

    What was there before is kept until the first byte comes; a file that got none is not left behind.
    `written`: its path, once something was written. PyAV takes it for a file; it has no `seek`, so nothing
    before its end ever changes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size_bytes = self._whole_bytes = 0
        self._error: SinkError | None = None
        self.written: list[str] = []
        self._existed = path.exists()
        check_output_file("output", path, error=SinkError)
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise write_error(path, error) from error
        if not _lock(self._file.fileno()):
            self._file.close()
            raise SinkError(f"output: got {path}, which another run is writing, expected a file of its own; choose one")

    @property
    def failed(self) -> bool:
        return self._error is not None

    def write(self, content: bytes) -> int:
        """All of it. Raises SinkError, now and from then on, when it has no room."""
        if self._error:
            raise self._error
        rest = memoryview(content)
        try:
            if not self.written:
                self._empty()
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._whole_bytes)
            self._size_bytes = self._whole_bytes
            self._error = write_error(self._path, error)
            raise self._error from error
        self._size_bytes += len(content)
        return len(content)

    def mark_whole(self) -> None:
        """What was written so far is worth keeping."""
        self._whole_bytes = self._size_bytes

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Raises the SinkError of a write within, whatever a library between made of it."""
        try:
            yield
        finally:
            if self._error:
                raise self._error

    def close(self) -> None:
        self._file.close()
        if not self._size_bytes and (self.written or not self._existed):
            self._path.unlink(missing_ok=True)
            self.written.clear()

    def _empty(self) -> None:
        """The old content goes."""
        self._file.truncate(0)
        self.written.append(str(self._path))
