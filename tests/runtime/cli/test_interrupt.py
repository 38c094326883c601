"""Signals: the first is taken, the second is the system's, and afterwards all is as it was."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from videossm.runtime.cli.interrupt import noted_interrupt, raised_interrupt

# Native code that keeps Python from running anything, for longer than a signal cuts short.
STUCK = """
import ctypes
from videossm.runtime.cli.interrupt import noted_interrupt
with noted_interrupt():
    print(flush=True)
    for _ in range(3):
        ctypes.PyDLL(None).sleep(20)
"""


@pytest.mark.parametrize(
    ("number", "code", "verb"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_what_is_said_of_it(number, code, verb):
    before = signal.getsignal(number)
    with noted_interrupt() as noted:
        assert not noted.seen
        signal.raise_signal(number)
        assert (noted.seen, noted.exit_code, noted.verb) == (True, code, verb)
        assert signal.getsignal(number) == signal.SIG_DFL, "the next one is the system's"
    assert signal.getsignal(number) == before
    with pytest.raises(KeyboardInterrupt), raised_interrupt() as raised:
        signal.raise_signal(number)
    assert (raised.seen, raised.exit_code, raised.verb) == (True, code, verb)
    assert signal.getsignal(number) == before


def test_what_a_shell_ignores_for_a_job_in_the_background():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raised_interrupt() as raised:
            signal.raise_signal(signal.SIGINT)
        with noted_interrupt() as noted:
            signal.raise_signal(signal.SIGINT)
        assert (raised.seen, noted.seen) == (False, True)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_rollout_is_cancelled():
    class Rollout:
        cancelled = 0

        def cancel(self):
            self.cancelled += 1

    with noted_interrupt() as noted:
        noted.rollout = Rollout()
        signal.raise_signal(signal.SIGTERM)
        assert noted.rollout.cancelled == 1


@pytest.mark.skipif(sys.platform != "linux", reason="where the C library has no sysv_signal, Python has to run for it")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_one_ends_code_that_never_lets_python_run(signalled, number):
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    signalled(process, number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)  # less than it would sleep
    assert (process.returncode, err) == (-number, b"")
