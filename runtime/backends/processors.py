"""Where the threads of a session run.

ONNX Runtime ties each worker of a session to a processor, but not the thread that calls it. Where the system puts that
one on a worker's processor, the two take turns instead of working side by side: a graph of six small transformer blocks
then took 3.1 ms on two threads, longer than on one (2.9), instead of 1.8. So the caller is tied as well while it runs a
session.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_taken = itertools.count(os.getpid())


@dataclass(frozen=True)
class Placement:
    """Numbers of processors: one for the thread that calls, and one for each worker."""

    caller: int
    workers: tuple[int, ...]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Ties the calling thread to its processor; afterwards it may run where it could before."""
        before = os.sched_getaffinity(0)
        with suppress(OSError):  # the system has taken that processor away since: slower, and as right
            os.sched_setaffinity(0, {self.caller})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def place(threads: int | None) -> Placement | None:
    """Processors for a session of `threads` threads, each on a core of its own; None for one thread a core.

    Each call begins at another core, so that rollouts beside each other, in this process or another, do not all run
    what is not parallel on the same one. Where this thread may run on one core only, `threads` None means one thread:
    ONNX Runtime's own number counts the cores of the whole machine. Returns None where one thread is asked for, where
    there are fewer cores than threads, and where the system does not say.
    """
    cores = _cores()
    wanted = threads or len(cores)
    if threads is None and wanted == 1:
        return Placement(cores[0], ())
    if not 1 < wanted <= len(cores):
        return None
    start = next(_taken) % len(cores)
    chosen = (cores[start:] + cores[:start])[:wanted]
    return Placement(chosen[0], tuple(chosen[1:]))


def _cores() -> list[int]:
    """One processor of each core that this thread may run on; none where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    found: dict[str, int] = {}
    for processor in sorted(os.sched_getaffinity(0)):
        try:
            core = Path(_SIBLINGS.format(processor)).read_text()
        except OSError:
            core = str(processor)
        found.setdefault(core, processor)
    return list(found.values())
