"""benchmarks/gpu.py over the emulation: what it does with a device, but for the figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    monkeypatch.setattr(gpu, "CHUNKS", 8)
    yield gpu
    sys.modules.pop("gpu")


def test_engines_are_measured_and_compared_with_their_graphs(script, tiny_plan, engine_plan, tensorrt):
    tensorrt()
    plan = engine_plan(tiny_plan, target={"architectures": ["sm_90"]})
    row = script.row_of(plan, [tiny_plan, plan], None)
    assert row["errors"] == [0.0] * 8 and row["passed"] is True
    assert row["figures"]["device_usage"]["graphs"] > 0
    shown = script.markdown({"date": "2026-11-21", "gpu": "none", "driver": "none", "rows": [row]})
    assert f"| {plan.path.name} | tensorrt | " in shown and "| 0.0e+00 |" in shown


def test_what_cannot_run_says_why(script, tiny_plan, engine_plan, tensorrt):
    tensorrt().cuda.fail("cudaGetDeviceCount", 100)
    row = script.row_of(engine_plan(tiny_plan), [tiny_plan], None)
    assert row["passed"] is None and row["failed"].startswith("device: got cuda:0, but no usable GPU here")
    shown = script.markdown({"date": "2026-11-21", "gpu": "none", "driver": "none", "rows": [row]})
    assert row["failed"] in shown
