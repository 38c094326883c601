"""The paper's width on a small machine: two of its layers, random weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from videossm.runtime import Plan

pytestmark = pytest.mark.slow

# The process tells its own peak: what its parent hears of it counts what the parent held when it made the process.
# Without triton: PyTorch imports it where it is installed, as for mamba-ssm here, which takes 80 MB.
MEASURED = """
import atexit, sys
sys.modules["triton"] = None
from pathlib import Path
from videossm.export.cli import export
atexit.register(lambda: print(Path("/proc/self/status").read_text(), file=sys.stderr))
export.main(sys.argv[1:])
"""
EXPORT = [sys.executable, "-c", MEASURED, "videossm-1.3b", "--set", "layers=2", "--random-weights", "--json"]
MEMORY_RATIO = 2.5  # peak memory of an export to its weights
BYTES_PER_PARAMETER = 4


def export(out: Path, *options: str) -> tuple[dict, int]:
    """The report of an export in a process of its own, and that process's peak memory in bytes."""
    done = subprocess.run([*EXPORT, "-o", str(out), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (peak_kb,) = re.findall(r"VmHWM:\s+(\d+) kB", done.stderr)
    return json.loads(done.stdout), int(peak_kb) * 1024


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
