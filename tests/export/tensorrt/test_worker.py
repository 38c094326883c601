"""Work in a thread that Ctrl-C in this one ends."""

from __future__ import annotations

import threading

import pytest

from videossm.export.tensorrt.worker import in_thread

LIMIT_S = 10


def test_result_and_error() -> None:
    assert in_thread(lambda: threading.current_thread() is not threading.main_thread())
    with pytest.raises(MemoryError, match="none left"):
        in_thread(fails)


def fails() -> None:
    raise MemoryError("none left")


def test_ctrl_c_cancels_and_waits() -> None:
    asked, ended = threading.Event(), []

    def work() -> None:
        ended.append(asked.wait(LIMIT_S))

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_thread(work, interrupted, asked.set)
    assert ended == [True]
