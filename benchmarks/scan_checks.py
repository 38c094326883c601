"""The CUDA scans against float64, split, and in place: `python benchmarks/scan_checks.py LIBRARY` checks a few cases.

That is what gpu_session.py runs under compute-sanitizer; it checks all of them itself.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from scan_cases import (
    TORCH_DTYPES,
    Case,
    GatedCase,
    Results,
    SelectiveCase,
    Tensors,
    errors,
    gated_cases,
    on,
    parts,
    selective_cases,
)

from videossm.plugins_trt import ScanLibrary

TOOLS = ("memcheck", "racecheck")
TOOL_TIMEOUT_S = 240
SUMMARY = re.compile(r"SUMMARY: (\d+) (?:error|hazard)")


def all_cases(multiprocessors: int) -> list[Case]:
    return [*gated_cases(), *selective_cases(), *wide_cases(multiprocessors)]


def wide_cases(multiprocessors: int) -> list[Case]:
    """So many heads and channels that kernels are launched as they are for a full device: thread blocks of more warps,
    16 and 8 lanes a channel."""
    cases: list[Case] = []
    for dtype in TORCH_DTYPES:
        for heads in (multiprocessors // 4 + 1, multiprocessors // 2 + 1, multiprocessors + 1):
            cases += [GatedCase(dtype, 70, 128, 128, heads=heads, wanted=wanted) for wanted in (True, False)]
        for channels in (12 * multiprocessors + 1, 24 * multiprocessors + 1):  # of two batches
            cases += [SelectiveCase(dtype, tokens, channels, states) for tokens, states in ((129, 8), (300, 24))]
    return cases


def few_cases(multiprocessors: int) -> list[Case]:
    """Every kernel once."""
    cases: list[Case] = []
    for dtype in TORCH_DTYPES:
        cases += [GatedCase(dtype, 70, dim, dim, wanted=wanted) for dim in (32, 64, 128) for wanted in (True, False)]
        cases += [SelectiveCase(dtype, tokens) for tokens in (1, 530)]
    return [*cases, *(replace(case, tokens=40) for case in wide_cases(multiprocessors))]


def check(library: ScanLibrary, case: Case, device: str) -> dict[str, Any]:
    """Errors relative to float64, and whether all are within the tolerance and a state in place gives the same bits."""
    row = {"case": repr(case), "tolerance": case.tolerance}
    tensors = case.tensors()
    expected = case.expected(tensors)
    try:
        there = on(device, tensors)
        whole, in_place = (_to_cpu(case.run(library, there, in_place=again)) for again in (False, True))
        found = {"whole": errors(whole, expected)}
        if case.tokens > 1:
            found["split"] = errors(_to_cpu(run_split(library, case, there)), expected)
    except RuntimeError as error:  # refused, or writes where nothing is to be written
        return row | {"errors": str(error), "in_place": None, "passed": False}
    same = all(_same(*pair) for pair in zip(whole, in_place, strict=True))
    near = all(error <= most for pair in found.values() for error, most in zip(pair, case.tolerance, strict=True))
    return row | {"errors": found, "in_place": same, "passed": same and near}


def run_split(library: ScanLibrary, case: Case, tensors: Tensors) -> Results:
    """Two calls, the second from the state that the first leaves."""
    outputs, state = [], tensors["state"]
    for part, cut in parts(case, tensors, max(1, case.tokens * 2 // 5)):
        output, state = part.run(library, {**cut, "state": state})
        outputs.append(output)
    assert state is not None, "parts: got none, expected two"
    axis = 1 if isinstance(case, GatedCase) else 2
    return (torch.cat([x for x in outputs if x is not None], axis) if case.wanted else None), state


def failures(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"{row['case']}: got errors {row['errors']}, equal in place {row['in_place']}, expected {row['tolerance']}"
        for row in rows
        if not row["passed"]
    ]


def sanitized(library: Path, tool: str) -> dict[str, Any]:
    """A run of this file under a tool; `passed` is None where the tool did not judge, with the reason."""
    nvcc = shutil.which("nvcc")
    beside = Path(nvcc).resolve().parent if nvcc else Path("/usr/local/cuda/bin")
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=beside)
    if program is None:
        why = "compute-sanitizer: got none, expected it on PATH or beside nvcc"
        return {"tool": tool, "passed": None, "summary": why}
    return _sanitize(program, tool, library)


def _sanitize(program: str, tool: str, library: Path) -> dict[str, Any]:
    # Without the cache each tensor is an allocation of its own, whose end the tool knows.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [program, "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
    command += [sys.executable, __file__, str(library)]
    start = perf_counter()
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=TOOL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {"tool": tool, "passed": None, "summary": f"got no end within {TOOL_TIMEOUT_S} s"}
    lines = [line.strip("= ") for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    counts = [(line, found[1]) for line in lines if (found := SUMMARY.search(line))]
    row = {"tool": tool, "seconds": perf_counter() - start}
    refused = [line for line in lines if "not supported" in line]
    if refused or not counts:
        said = (refused or lines or ["nothing"])[-1]
        return row | {"passed": None, "summary": f"got exit code {done.returncode} and no judgement: {said}"}
    summary, count = counts[-1]
    return row | {"passed": done.returncode == 0 and count == "0", "summary": summary}


def _same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _to_cpu(results: Results) -> Results:
    output, state = results
    return (None if output is None else output.cpu()), state.cpu()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, help="libvideossm_scans_cuda.so")
    args = parser.parse_args()
    library = ScanLibrary(args.library)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    rows = [check(library, case, "cuda") for case in few_cases(multiprocessors)]
    for failure in failures(rows):
        print(failure, file=sys.stderr)
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
