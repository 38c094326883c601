"""The scans in benchmarks/gpu_session.py, without a GPU: floors, bars, checks and peers on the CPU's library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from videossm.plugins_trt import ScanLibrary

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DTYPES = ("fp16", "bf16", "fp32")

Import = Callable[[str], ModuleType]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Import:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_the_work_of_a_gated_scan_is_counted(script: Import) -> None:
    work = script("scan_floors").GatedShape(1560, 12, 128, "bf16", wanted=False).work()
    assert work.bytes == 18720 * (2 * 128 * 2 + 8) + 2 * 4 * 12 * 128 * 128
    assert work.tensor_flops == 18720 * (4 * 128 * 128 + 33 * 256)


def test_an_output_costs_its_query_and_two_more_products(script: Import) -> None:
    with_output = script("scan_floors").GatedShape(64, 1, 32, "fp32", wanted=True).work()
    without = script("scan_floors").GatedShape(64, 1, 32, "fp32", wanted=False).work()
    assert with_output.bytes - without.bytes == 64 * 2 * 32 * 4
    assert with_output.tensor_flops - without.tensor_flops == 64 * (2 * 32 * 32 + 17 * 64)


def test_the_work_of_a_selective_scan_is_counted(script: Import) -> None:
    work = script("scan_floors").SelectiveShape(16384, 4096, 16, "fp16").work()
    assert work.bytes == 538_738_688
    assert work.fp32 == 4 * 16384 * 4096 * 16
    assert work.special == 16384 * 4096 * (16 + 3)


def test_the_floor_is_the_longest_of_its_times(script: Import) -> None:
    floors = script("scan_floors")
    rates = floors.Rates("a device", "a test", 1e9, dict.fromkeys(DTYPES, 1e9), fp32_per_s=1e9, special_per_s=1e6)
    assert floors.Work(bytes=10**6, fp32=10**5).times_ms(rates, "fp16") == pytest.approx({"bytes": 1, "fp32": 0.1})
    found = floors.floor(floors.SelectiveShape(16, 16, 8, "fp32"), rates)
    assert found["bound"] == "special functions"
    assert found["floor_ms"] == pytest.approx(16 * 16 * 11 / 1e6 * 1e3)


def test_tf32_counts_three_times_and_sm_80_has_half_the_lanes(script: Import) -> None:
    floors = script("scan_floors")
    assert floors.tensor_rates({"fp16": 6.0, "bf16": 6.0}, 3.0) == {"fp16": 6, "bf16": 6, "fp32": 1}
    assert floors.clocked_rates("80", 1, 1.0) == (64, 16)
    assert floors.clocked_rates("90", 1, 1.0) == (128, 16)


def test_the_grids_hold_the_shapes_of_the_bars(script: Import) -> None:
    floors, page = script("scan_floors"), script("gpu_scans_page")
    assert len(set(floors.gated_grid())) == 4 * 3 * 3 * 3 * 2
    assert len(set(floors.selective_grid())) == 5 * 3 * 3 * 3
    assert sum(map(floors.is_of_videossm, floors.gated_grid())) == (1 + 3 * 2) * 3 * 2
    assert {dtype: floors.SelectiveShape(**page.LONG, dtype=dtype) in floors.selective_grid() for dtype in DTYPES}


def test_the_checks_pass_on_the_cpu_and_fail_for_a_bound_that_is_not_met(
    script: Import, cpu_library: ScanLibrary
) -> None:
    checks, cases = script("scan_checks"), script("scan_cases")
    few = [cases.GatedCase("fp32", 33), cases.GatedCase("bf16", 1, wanted=False)]
    assert checks.failures([checks.check(cpu_library, case, "cpu") for case in few]) == []

    class Strict(cases.GatedCase):  # type: ignore[misc, name-defined]
        tolerance = (0.0, 0.0)

    (failure,) = checks.failures([checks.check(cpu_library, Strict("fp32", 33), "cpu")])
    assert "tokens=33" in failure


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_computes_what_ours_does(script: Import, cpu_library: ScanLibrary, dtype: str) -> None:
    speed, peers, floors = script("scan_speed"), script("scan_peers"), script("scan_floors")
    shapes = {
        floors.GatedShape(70, 3, 32, dtype, wanted=True): peers.gated_peers()[-1],
        floors.GatedShape(70, 3, 32, dtype, wanted=False): peers.gated_peers()[-1],
        floors.SelectiveShape(70, 5, 8, dtype): peers.selective_peers()[-1],
    }
    for shape, torch_peer in shapes.items():
        tensors = speed.make_tensors(shape, "cpu")
        ours, _ = speed.make_ours(cpu_library, shape, tensors)
        found = speed.compared(torch_peer, ours(), tensors, shape)
        assert not isinstance(found, str), f"{shape}: {found}"


def test_a_peer_that_is_missing_refuses_or_differs_says_why(script: Import, cpu_library: ScanLibrary) -> None:
    speed, peers, floors = script("scan_speed"), script("scan_peers"), script("scan_floors")
    shape = floors.SelectiveShape(4, 2, 8, "fp32")
    tensors = speed.make_tensors(shape, "cpu")
    y, state = speed.make_ours(cpu_library, shape, tensors)[0]()

    def refuses(tensors: object) -> None:
        raise AssertionError("no such type")

    said = [
        speed.compared(peer, (y, state), tensors, shape)
        for peer in (
            peers.Peer("a", "", None, missing="not installed"),
            peers.Peer("b", "1", refuses),
            peers.Peer("c", "1", lambda tensors: lambda: (y + 1, state)),
        )
    ]
    assert said[:2] == ["not installed", "AssertionError: no such type"]
    assert said[2].startswith("got a relative difference of")


@pytest.mark.parametrize(
    ("printed", "code", "passed"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, True),
        ("========= ERROR SUMMARY: 3 errors", 9, False),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0, True),
        ("========= RACECHECK SUMMARY: 10 hazards displayed (1 error, 9 warnings)", 9, False),
        ("========= ERROR SUMMARY: 0 errors", 1, False),
        ("========= Error: Device not supported", 1, None),
        ("", 0, None),
    ],
    ids=["clean", "errors", "no-hazards", "hazards", "child-failed", "refused", "silent"],
)
def test_a_sanitizer_is_judged_by_its_summary(
    script: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, code: int, passed: bool | None
) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\necho '{printed}'\nexit {code}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    row = script("scan_checks").sanitized(tmp_path / "library.so", "racecheck")
    assert (row["tool"], row["passed"]) == ("racecheck", passed)


def test_bars_are_judged_by_the_worst_shape(script: Import) -> None:
    page = script("gpu_scans_page")
    sizes = {"tokens": 16384, "channels": 4096, "states": 16}
    times = {"ms": 0.5, "floor_ms": 0.45, "of_floor": 0.9, "bound": "special functions"}
    rows = [
        {
            **sizes,
            **times,
            "times_ms": {"bytes": bytes_ms, "special functions": 0.45},
            "dtype": dtype,
            "peers": {"torch": {"ratio": ratio}},
            "left_out": {"mamba-ssm": "too old"},
        }
        for dtype, ratio, bytes_ms in (("fp16", 3.0, 0.35), ("bf16", 0.9, 0.25))
    ]
    peers = [{"name": name, "missing": ""} for name in ("mamba-ssm", "torch")]
    result = {
        "cases": 5,
        "selective_scan": rows,
        "gated_delta": [],
        "peers": {"gated_delta": [], "selective_scan": peers},
    }
    bars = {bar["name"]: (bar["passed"], bar["detail"]) for bar in page.judge(result)}
    assert bars["selective_scan faster than torch at VideoSSM's shapes"][0] is False
    assert bars["selective_scan faster than mamba-ssm at VideoSSM's shapes"] == (None, "too old")
    reaches = "selective_scan in {} reaches 60% of the floor of bytes and FLOPs at 16384 x 4096 x 16"
    assert bars[reaches.format("fp16")][0] is True
    assert bars[reaches.format("bf16")][0] is False, "special functions do not count"
    assert bars[reaches.format("fp32")] == (None, "not run")
