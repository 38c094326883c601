"""Skips, with a reason, what Python 3.10's last ONNX Runtime cannot load; a later one skips nothing."""

from __future__ import annotations

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
