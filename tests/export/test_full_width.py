"""The paper's width on a small machine: two of its layers, random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from videossm.runtime import Plan

EXPORT = [sys.executable, "-m", "videossm.export.cli", "videossm-1.3b", "--layers", "2", "--random-weights", "--json"]
MEMORY_RATIO = 2.5  # peak memory of an export to its weights
BYTES_PER_PARAMETER = 4


def export(out: Path, *options: str) -> tuple[dict, int]:
    """The report of an export in a process of its own, and that process's peak memory in bytes."""
    process = subprocess.Popen([*EXPORT, "-o", str(out), *options], stdout=subprocess.PIPE)
    assert process.stdout is not None
    report = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return report, usage.ru_maxrss * 1024


def test_export_holds_the_weights_little_more_than_twice(tmp_path: Path) -> None:
    report, peak_bytes = export(tmp_path / "engine.plan", "--no-verify")
    assert peak_bytes <= MEMORY_RATIO * BYTES_PER_PARAMETER * report["parameters"]
    stream = Plan.open(tmp_path / "engine.plan").manifest.stream
    assert (stream.height, stream.width) == (480, 832)


def test_verifies_past_the_window(tmp_path: Path) -> None:
    """Full width, few tokens: what costs at full size is attention, and it is the same graph."""
    report, _ = export(tmp_path / "engine.plan", "--height", "48", "--width", "64", "--verify-chunks", "6")
    assert len(report["chunk_errors"]) == 6
    assert max(report["chunk_errors"]) <= report["tolerance"]
