"""benchmarks/gpu_plans.py over the emulation: what it does with a device, but for the figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_plan import rebuilt

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_plans

    monkeypatch.setattr(gpu_plans, "TIMED_CHUNKS", 8)
    yield gpu_plans
    for name in ("gpu_plans", "gpu_session_parts"):
        sys.modules.pop(name)


def test_engines_are_measured_and_compared_with_their_graphs(script, tiny_plan, engine_plan, tensorrt):
    tensorrt()
    plan = engine_plan(tiny_plan, target={"architectures": ["sm_90"]})
    timed = script.figures_of(plan, None)
    assert timed["figures"]["device_usage"]["graphs"] > 0
    assert script.reference_of(plan, [tiny_plan, plan]) == tiny_plan
    compared = script.errors_of(plan, tiny_plan, None)
    assert compared["errors"] == [0.0] * script.COMPARED_CHUNKS and compared["passed"] is True
    ((name, ms, *_, worst),) = script.markdown_rows({"a plan": timed}, {"a plan": compared})
    assert name == "a plan" and float(ms) > 0 and worst == f"0.0e+00 beside {tiny_plan.path.name}"


def test_what_cannot_run_says_why(script, tiny_plan, engine_plan, tensorrt):
    tensorrt().cuda.fail("cudaGetDeviceCount", 100)
    row = script.figures_of(engine_plan(tiny_plan), None)
    assert row["passed"] is None and row["failed"].startswith("device: got cuda:0, but no usable GPU here")
    assert script.markdown_rows({"a plan": row}, {})[0][1] == row["failed"]


def test_a_bf16_plan_is_compared_with_the_fp32_one(script, tiny_plan, plan_copy):
    """A CPU has no bf16 products in ONNX Runtime."""
    half = rebuilt(plan_copy, precision="bf16")
    assert script.reference_of(half, [half, tiny_plan]) == tiny_plan
    assert script.reference_of(half, [half]) is None


def test_plans_are_found_in_the_order_of_their_worth(script, tiny_plan, tmp_path):
    for name in ("wide-bf16", "other", "shapes-fp32"):
        (tmp_path / f"{name}.plan").symlink_to(tiny_plan.path)
    names = [plan.path.name for plan in script.found(tmp_path)]
    assert names == ["shapes-fp32.plan", "wide-bf16.plan", "other.plan"]
    items = list(script.errors(tmp_path))
    assert len(items) == 3 * len(script.PROVIDERS) and items[0].name.startswith("shapes-fp32.plan by ")
