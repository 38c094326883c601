"""What all tests share: another processor, and a reason for what Python 3.10's last ONNX Runtime cannot load.

A later ONNX Runtime skips nothing.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Generator

import onnxruntime
import pytest
from packaging.version import Version

OLD = Version(onnxruntime.__version__) < Version("1.24")
BEYOND_OLD = {
    "LinearAttention(-1) is not a registered": "has no LinearAttention",
    "ValidateOpsetForDomain": "stops at opset 23",
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for message, why in BEYOND_OLD.items() if OLD and report.failed else ():
        if message in str(report.longrepr):
            path, line, _ = item.location
            report.outcome, report.longrepr = "skipped", (path, line, f"ONNX Runtime {onnxruntime.__version__} {why}")
    return report


@pytest.fixture(scope="session")
def emulated_python() -> list[str]:
    """The start of a command that runs this Python on an emulated Haswell: it has AVX2, no AVX-512 and no VNNI.

    Haswell, because no version of the emulator can give it VNNI. EPYC-Rome, AMD's kind of it, computes the same.
    """
    if platform.machine() != "x86_64":
        pytest.skip(f"{platform.machine()}: an emulated x86-64 processor needs the packages of an x86-64 machine")
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("no emulator of another processor: apt-get install qemu-user")
    command = [emulator, "-cpu", "Haswell", sys.executable]
    started = subprocess.run([*command, "-c", "import onnxruntime"], capture_output=True, text=True)
    if started.returncode:  # the emulator knows AVX2 from version 7.2 on
        pytest.skip(f"qemu-x86_64 cannot start ONNX Runtime: {started.stderr.strip().rpartition(chr(10))[2]}")
    return command
