"""TensorRT at work in a thread of its own, so that Ctrl-C can end it.

Python runs the handler of Ctrl-C in the main thread, at the next of its instructions there. While TensorRT works in it
there are none, but for those of the logger and the progress monitor, and what is raised in these TensorRT drops.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Event, Thread
from typing import TypeVar

POLL_S = 0.05  # how long Ctrl-C waits to be seen, at most
INTERRUPTED = 130  # exit code

T = TypeVar("T")


def in_thread(
    work: Callable[[], T], meanwhile: Callable[[], None] = lambda: None, cancel: Callable[[], None] = lambda: None
) -> T:
    """What `work()` returns or raises; `meanwhile` is called here until then.

    Ctrl-C calls `cancel`, waits until `work` has ended, and raises KeyboardInterrupt; a second one does not wait.
    """
    done: Future[T] = Future()
    begun, given_up = Event(), Event()

    def run() -> None:
        begun.set()
        if given_up.is_set():
            done.set_exception(KeyboardInterrupt())
            return
        try:
            done.set_result(work())
        except BaseException as error:  # which the caller gets
            done.set_exception(error)

    try:
        Thread(target=run, daemon=True).start()
        while not done.done():
            wait([done], POLL_S)
            meanwhile()
    except KeyboardInterrupt:
        try:
            cancel()
            given_up.set()
            if begun.is_set():  # else the work is never begun
                wait([done])
        except KeyboardInterrupt:  # Python must not end while TensorRT works, whose next message would abort it
            atexit.register(lambda: None if done.done() else os._exit(INTERRUPTED))
        raise
    return done.result()
