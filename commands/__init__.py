"""What the installed commands start with, before anything is imported that takes long."""

import os
import signal
from importlib import import_module


def batch() -> None:
    _start("videossm.batch.cli", "batch")


def bench() -> None:
    _start("videossm.runtime.cli.bench", "bench")


def calibrate() -> None:
    _start("videossm.calib.cli.calibrate", "calibrate")


def compare() -> None:
    _start("videossm.calib.cli.compare", "compare")


def doctor() -> None:
    _start("videossm.runtime.cli.doctor", "doctor")


def export() -> None:
    _start("videossm.export.cli", "export")


def inspect() -> None:
    _start("videossm.cost.cli", "inspect")


def run() -> None:
    _start("videossm.runtime.cli.run", "run")


def serve() -> None:
    _start("videossm.serve.cli", "serve")


def _start(module: str, command: str) -> None:
    """Ctrl-C while it loads ends the process as any other; Python's own way is a traceback."""
    _fill_standard_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    getattr(import_module(module), command)()


def _fill_standard_streams() -> None:
    """Where one was closed, the next file to be opened would take its number, and get what is printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
