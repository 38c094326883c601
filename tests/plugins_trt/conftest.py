"""The libraries of the scans that these tests call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from videossm.plugins_trt import ScanLibrary

ROOT = Path(__file__).parents[2]

sys.path.append(str(ROOT / "benchmarks"))  # whose cases and checks of the scans are the tests', too


@pytest.fixture(scope="session")
def cpu_library_path(build_target: Callable[[str], Path]) -> Path:
    return build_target("videossm_scans_cpu") / "libvideossm_scans_cpu.so"


@pytest.fixture(scope="session")
def cpu_library(cpu_library_path: Path) -> ScanLibrary:
    return ScanLibrary(cpu_library_path)


@pytest.fixture(scope="session")
def emulated_library(build_target: Callable[[str], Path]) -> ScanLibrary:
    """The CUDA kernels compiled for the host, see emulator/emulator.h."""
    return ScanLibrary(build_target("videossm_scans_emulated") / "libvideossm_scans_emulated.so")
