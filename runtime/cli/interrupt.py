"""Ctrl-C (SIGINT) and SIGTERM, which service managers send: the first one ends a command as it should.

The second one is the system's, which ends the process at once, in native code too.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from videossm.runtime.rollout import Rollout

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interrupt:
    """The signal that came, if one did, and the `rollout` that it cancels, if there is one yet."""

    number: int | None = None
    rollout: Rollout | None = None

    @property
    def seen(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM: what a shell says of a process that they ended."""
        return 128 + (self.number or signal.SIGINT)

    @property
    def verb(self) -> str:
        return "terminated" if self.number == signal.SIGTERM else "interrupted"


@contextmanager
def raised_interrupt() -> Iterator[Interrupt]:
    """The first signal raises KeyboardInterrupt, so that what is half done is removed."""
    interrupt = Interrupt()

    def end(number: int) -> None:
        interrupt.number = number
        raise KeyboardInterrupt

    with _handled(end):
        yield interrupt


@contextmanager
def noted_interrupt() -> Iterator[Interrupt]:
    """The first signal ends a rollout between two passes: the chunk in hand is dropped, what was made stays.

    SIGINT is taken even where a script's shell has it ignored, for a job in the background: `kill -INT` ends a stream.
    """
    interrupt = Interrupt()

    def note(number: int) -> None:
        interrupt.number = number
        if interrupt.rollout is not None:
            interrupt.rollout.cancel()

    with _handled(note, ignored_too=True):
        yield interrupt


@contextmanager
def _handled(take: Callable[[int], None], ignored_too: bool = False) -> Iterator[None]:
    """Within, the first signal calls `take` with its number; afterwards all is as before.

    A signal that is ignored stays so, unless `ignored_too`. Only the main thread is asked for any.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number in _SIGNALS if ignored_too or before[number] != signal.SIG_IGN]

    def handle(number: int, frame: object) -> None:
        for other in taken:
            signal.signal(other, signal.SIG_DFL)
        take(number)

    try:
        for number in taken:
            signal.signal(number, handle)
            _left_to_the_system_after_one(number)
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number] or signal.SIG_DFL)  # None: not Python's own


def _left_to_the_system_after_one(number: int) -> None:
    """Lets the kernel itself put the default back as it delivers the first signal.

    Python calls a handler between two of its instructions, so not while native code runs: there the first signal waits,
    and so would the second. System V's signal() is the way to it that needs no struct; where a C library has none,
    the handler has to do it.
    """
    try:
        sysv_signal = ctypes.CDLL(None).sysv_signal
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, Windows not even a library to ask
        return
    sysv_signal.argtypes, sysv_signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    pythons_own = sysv_signal(number, None)
    sysv_signal(number, pythons_own)
