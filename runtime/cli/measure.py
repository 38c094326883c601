"""Measures of this process: how long it has run, and its resident memory."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_IMPORTED_S = time.perf_counter()


def process_age_s() -> float:
    """Seconds since the process started; where the system does not say, since this module was imported."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, AttributeError, ValueError):
        return time.perf_counter() - _IMPORTED_S


def resident_bytes() -> int:
    """Resident memory now; where the system does not say, its peak."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
