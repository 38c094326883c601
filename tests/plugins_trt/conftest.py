"""Builds targets of plugins_trt/CMakeLists.txt, in a folder that later runs of the tests find again."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from videossm.plugins_trt import ScanLibrary

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "plugins_trt"
FOLDER = ROOT / "build" / "tests" / "plugins_trt"
COMPILERS = ("c++", "g++", "clang++")

sys.path.append(str(ROOT / "benchmarks"))  # whose cases and checks of the scans are the tests', too


@pytest.fixture(scope="session")
def build_target() -> Callable[[str], Path]:
    """Builds one target and returns the folder that it lies in. Skips where there is no compiler or no CMake."""
    compiler = os.environ.get("CXX") or next((name for name in COMPILERS if shutil.which(name)), None)
    if compiler is None or shutil.which("cmake") is None:
        pytest.skip("the kernels are not built: got no C++ compiler or no cmake")
    FOLDER.mkdir(parents=True, exist_ok=True)

    def build(target: str) -> Path:
        with (FOLDER / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of another run of the tests
            _run("cmake", "-S", SOURCE, "-B", FOLDER, "-DCMAKE_BUILD_TYPE=Release")
            _run("cmake", "--build", FOLDER, "--target", target)
        return FOLDER

    return build


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


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{command[0]}: got exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
