"""What long work tells whoever waits for it: how long it takes, how far it is and at which part."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

LONG_S = 30  # work that takes less is not announced


class Bar(Protocol):
    """Progress, as tqdm has it."""

    def update(self, n: int = 1) -> object: ...

    def set_description(self, desc: str) -> object: ...


# (total, unit) -> a bar to use in a with statement
Progress = Callable[[int, str], AbstractContextManager[Bar]]
Say = Callable[[str], object]  # shows one line


def announce(say: Say, what: str, seconds: float) -> None:
    """Says about how long `what` takes, if that is long."""
    if seconds >= LONG_S:
        say(f"{what}: about {about(seconds)} on this machine")


def about(seconds: float) -> str:
    """In the unit that fits, without decimals."""
    for unit, length_s in (("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * length_s:
            return f"{seconds / length_s:.0f} {unit}s"
    return f"{seconds:.0f} seconds"
