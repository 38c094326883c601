"""benchmarks/kernel_resources.py reads what ptxas prints, and writes into a page what is its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

LOG = """\
ptxas info    : Compiling entry function \
'_ZN8videossm16gated_delta_scanI{type}Li{size}ELb1EEEvNS_14GatedDeltaTaskIT_EE' for 'sm_{architecture}'
ptxas info    : Function properties for a kernel
    {stack} bytes stack frame, {stack} bytes spill stores, {stack} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 480 bytes cmem[0]
"""
TYPES = {"fp32": "f", "fp16": "NS_4HalfE", "bf16": "NS_8BFloat16E"}


@pytest.fixture
def resources(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("kernel_resources")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("machine")


def log(size: int, registers: int, stack: int = 0) -> str:
    sizes = {"size": size, "registers": registers, "stack": stack, "architecture": "90"}
    return "".join(LOG.format(type=name, **sizes) for name in TYPES.values())


def test_kernels_are_read_from_a_log(resources: ModuleType) -> None:
    kernels = resources.parse(log(64, 120))
    assert [kernel.dtype for kernel in kernels] == list(TYPES)
    assert {(kernel.what, kernel.registers, kernel.spilled_bytes) for kernel in kernels} == {
        ("gated_delta_scan, d_k 64, with output", 120, 0)
    }


def test_tables_are_in_the_order_of_sizes_and_show_spills(resources: ModuleType) -> None:
    lines = resources.tables(resources.parse(log(128, 168, stack=8) + log(64, 120)), {"90": 14.2}).splitlines()
    assert lines[2] == "| gated_delta_scan, d_k 64, with output | 120 / 120 / 120 |"
    assert "168 (16 B spilled)" in lines[3]
    assert lines[-1] == "6 kernels, of which 3 spill or have a stack."


def test_a_log_that_is_not_understood_is_refused(resources: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected a function's registers and spills"):
        resources.parse(log(64, 120).replace("registers", "cores"))
    with pytest.raises(ValueError, match="expected one of the namespace videossm"):
        resources.parse(log(64, 120).replace("8videossm", "5other"))


PAGE = "first\n<!-- by a.py -->\nold a\n<!-- end -->\n<!-- by b.py -->\nold b\n<!-- end -->\nlast\n"


def test_only_what_is_between_a_script_s_own_markers_is_replaced(machine: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    machine.write_between(page, "<!-- by b.py -->", "new\nb")
    assert page.read_text(encoding="utf-8") == PAGE.replace("old b", "new\nb")


@pytest.mark.parametrize(
    "text",
    [None, "", PAGE.replace("by b", "by c"), PAGE.replace("old b\n<!-- end -->\n", ""), f"<!-- by b.py -->\n{PAGE}"],
    ids=["no-page", "empty", "no-start", "no-end", "the-end-of-another"],
)
def test_a_page_without_the_markers_is_refused(machine: ModuleType, tmp_path: Path, text: str | None) -> None:
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^page: got .*page\.md, expected a file with <!-- by b\.py -->.*; add them$"):
        machine.write_between(page, "<!-- by b.py -->", "new")
    assert text is None or page.read_text(encoding="utf-8") == text
