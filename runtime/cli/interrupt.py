"""Ctrl-C during a rollout: the chunk in hand is dropped, and the run ends as it should."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from videossm.runtime.rollout import Rollout


@dataclass
class Interrupt:
    """Ctrl-C. The first one is noted and cancels `rollout`, if there is one yet."""

    seen: bool = False
    rollout: Rollout | None = None


@contextmanager
def noted_interrupt() -> Iterator[Interrupt]:
    """The first Ctrl-C ends the run between two passes; a second one ends the process as usual."""
    interrupt, before = Interrupt(), signal.getsignal(signal.SIGINT)

    def note(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        interrupt.seen = True
        if interrupt.rollout is not None:
            interrupt.rollout.cancel()

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
