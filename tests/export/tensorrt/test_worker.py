"""Work in a thread that Ctrl-C in this one ends."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from videossm.export.tensorrt.worker import in_thread

LIMIT_S = 60
# Two times Ctrl-C, while a thread works on and on.
TWICE = """
import signal, threading, time
from videossm.export.tensorrt.worker import in_thread
working = threading.Event()
def work():
    working.set()
    time.sleep(600)
def ctrl_c():
    if working.is_set():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
in_thread(work, ctrl_c, threading.Timer(0.2, ctrl_c).start)
"""


def test_result_and_error() -> None:
    assert in_thread(lambda: threading.current_thread() is not threading.main_thread())
    with pytest.raises(MemoryError, match="none left"):
        in_thread(fails)


def fails() -> None:
    raise MemoryError("none left")


def test_ctrl_c_cancels_and_waits() -> None:
    working, asked, ended = threading.Event(), threading.Event(), []

    def work() -> None:
        working.set()
        ended.append(asked.wait(LIMIT_S))

    def interrupted() -> None:
        if working.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_thread(work, interrupted, asked.set)
    assert ended == [True]


def test_a_second_ctrl_c_does_not_wait() -> None:
    """The process ends with 130 and not in an abort, though the work goes on."""
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
