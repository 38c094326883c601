"""The CUDA kernels compiled for a device: no warnings, no spills; and their library where there is no driver."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from kernel_resources import build, parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "tests" / "kernels"
ARCHITECTURE = "90"  # one of several that take as long each; benchmarks/kernel_resources.py compiles for all
LIBRARY = "libvideossm_scans_cuda.so"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("nvcc") is None or shutil.which("cmake") is None,
        reason="the CUDA kernels are not compiled: got no nvcc or no cmake",
    ),
]

# Calls both scans with addresses of the host that are never followed. Prints the statuses and texts.
WITHOUT_DEVICE = """
import ctypes, sys
import numpy as np
from videossm.plugins_trt import GatedDeltaParams, ScanLibrary, SelectiveScanParams

library, memory = ScanLibrary(sys.argv[1]), np.zeros((12, 4096), np.uint8)
addresses = [(row.ctypes.data + 15) // 16 * 16 for row in memory]
for params, names in (
    (GatedDeltaParams(1, 1, 1, 32, 16, 0, 1), "query key value decay beta state output last_state workspace"),
    (SelectiveScanParams(1, 2, 3, 4), "u delta A B C state y last_state"),
):
    for name, address in zip(names.split(), addresses):
        setattr(params, name, address)
    params.workspace_bytes = 4096 - 16
    params.workspace_bytes = min(params.workspace_bytes, library.workspace_bytes(params))
    try:
        library.run(params)
    except RuntimeError as error:
        print(error)
"""


@pytest.fixture(scope="session")
def compiled() -> tuple[str, Path]:
    """What ptxas said of the kernels, and the library."""
    log, _ = build(ARCHITECTURE, FOLDER)
    return log, FOLDER / ARCHITECTURE / LIBRARY


def test_no_kernel_spills(compiled: tuple[str, Path]) -> None:
    log, _ = compiled
    kernels = parse(log)
    count = Counter((kernel.name, kernel.dtype) for kernel in kernels)
    for dtype in ("fp32", "fp16", "bf16"):  # six: three d_k, with an output or not; three: lanes of a channel
        assert count["gated_delta_scan", dtype] == count["gated_delta_prepare", dtype] == 6
        assert (count["selective_scan", dtype], count["selective_step", dtype]) == (3, 1)
    assert [kernel for kernel in kernels if kernel.spilled_bytes or kernel.stack_bytes] == []
    assert "warning" not in log.lower()


def test_library_needs_no_cuda_library(compiled: tuple[str, Path]) -> None:
    """It holds CUDA's runtime, which looks for the driver when it is first called."""
    ctypes.CDLL(str(compiled[1]))
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("what the library needs is not listed: got no readelf")
    done = subprocess.run([readelf, "-d", compiled[1]], capture_output=True, text=True, check=True)
    needed = [line for line in done.stdout.splitlines() if "NEEDED" in line]
    assert needed
    assert not any("cuda" in line for line in needed)


def test_library_of_cuda_loads_without_a_driver(compiled: tuple[str, Path]) -> None:
    """A call is refused with a text; in a child process without devices, where there may be one."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DEVICE, compiled[1]],
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    gated, selective = done.stdout.splitlines()
    for said in (gated, selective):
        assert said.startswith("device: got '"), said
        assert said.endswith("' from the device"), said
