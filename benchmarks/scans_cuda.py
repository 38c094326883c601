"""The CUDA scans on this machine's GPU: built, checked, and timed beside others: `python benchmarks/scans_cuda.py`.

It builds libvideossm_scans_cuda for the device, compares every case of scan_cases.py with float64 (whole, split in
two, state in place), runs a few under compute-sanitizer, and times the grid of scan_floors.py against the device's
measured rates and, at VideoSSM's shapes, in turn with flash-linear-attention, mamba-ssm and PyTorch. What is not there
is left out with its reason. Prints each of the bars as passed, failed or not judged; writes Markdown and JSON; exit
code 1 if one failed.

Needs nvcc, cmake, PyTorch for CUDA, pydantic, tqdm, and this package: `pip install --no-deps -e .` is enough.
`--dry-run` needs no GPU: it compiles for an H200 where nvcc is found, and lists the grid with its floors.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from kernel_resources import FOLDER, BuildError, build, missing_tools, parse
from machine import add_outputs, write
from scan_cases import GatedCase
from scan_checks import all_cases, check, failures, sanitized
from scan_floors import H200, Rates, Shape, floor, gated_grid, is_of_videossm, selective_grid
from scan_peers import Peer, gated_peers, selective_peers
from scan_speed import TIMING, flush_buffer, measure, measure_rates
from scans_cuda_page import judge, line, markdown
from tqdm import tqdm

from videossm.plugins_trt import ScanLibrary
from videossm.runtime.driver import probe_driver

PARTS = ("checks", "sanitizer", "speed")
DRY_RUN_ARCHITECTURE, DRY_RUN_MULTIPROCESSORS = "90", 132
LEAST_ARCHITECTURE = 80

Result = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts; all without it")
    parser.add_argument("--dry-run", action="store_true", help="no GPU: compile, list the grid and its floors")
    add_outputs(parser)
    args = parser.parse_args()
    refused = None if args.dry_run else why_not_here()
    if refused:
        print(refused, file=sys.stderr)
        return 2
    try:
        result = dry_run() if args.dry_run else run(args.only)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    result["bars"] = judge(result)
    write(result, markdown(result), args.out, args.json_out)
    for bar in result["bars"]:
        print(line(bar), file=sys.stderr)
    return 1 if any(bar["passed"] is False for bar in result["bars"]) else 0


def why_not_here() -> str | None:
    if not torch.cuda.is_available():
        return f"device: got no GPU that PyTorch {torch.__version__} sees, expected one; --dry-run needs none"
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < LEAST_ARCHITECTURE:
        return f"device: got compute capability {major}.{minor}, expected at least 8.0"
    return missing_tools()


def run(only: list[str] | tuple[str, ...]) -> Result:
    properties = torch.cuda.get_device_properties(0)
    architecture = f"{properties.major}{properties.minor}"
    result = started(properties.name) | {"multiprocessors": properties.multi_processor_count}
    result["build"], path = compiled(architecture), library_path(architecture)
    library, rates, peers = ScanLibrary(path), measure_rates(), all_peers()
    result |= listed(rates, peers, properties.multi_processor_count)
    if "checks" in only:
        cases = tqdm(all_cases(properties.multi_processor_count), "checks", leave=False)
        result["checks"] = [check(library, case, "cuda") for case in cases]
        for failure in failures(result["checks"]):
            print(failure, file=sys.stderr)
    if "sanitizer" in only:
        result["sanitizer"] = sanitized(path)
    if "speed" in only:
        flush = flush_buffer()
        for scan, grid in grids().items():
            shapes = tqdm(grid, scan, leave=False)
            result[scan] = [measure(library, shape, peers[scan], rates, flush) for shape in shapes]
    return result


def dry_run() -> Result:
    """Everything that needs no GPU. No figure in it was measured."""
    result = started(None) | listed(H200, all_peers(), DRY_RUN_MULTIPROCESSORS)
    if missing := missing_tools():
        return result | {"build": {"left_out": missing}}
    result["build"] = compiled(DRY_RUN_ARCHITECTURE)
    workspace_bytes = ScanLibrary(library_path(DRY_RUN_ARCHITECTURE)).workspace_bytes
    for row in result["gated_delta"]:
        case = GatedCase(row["dtype"], row["tokens"], row["dim"], row["dim"], heads=row["heads"], wanted=row["wanted"])
        row["workspace_bytes"] = workspace_bytes(case.params())
    return result


def listed(rates: Rates, peers: dict[str, list[Peer]], multiprocessors: int) -> Result:
    """What is to be run: the number of cases, the grid with its floors, and the peers."""
    rows = {
        scan: [{**asdict(shape), "of_videossm": is_of_videossm(shape), **floor(shape, rates)} for shape in grid]
        for scan, grid in grids().items()
    }
    found = {scan: [described(peer) for peer in of] for scan, of in peers.items()}
    return {"rates": asdict(rates), "cases": len(all_cases(multiprocessors)), "peers": found, **rows}


def all_peers() -> dict[str, list[Peer]]:
    return {"gated_delta": gated_peers(), "selective_scan": selective_peers()}


def grids() -> dict[str, Sequence[Shape]]:
    return {"gated_delta": gated_grid(), "selective_scan": selective_grid()}


def described(peer: Peer) -> dict[str, str]:
    return {"name": peer.name, "version": peer.version, "missing": peer.missing, "note": peer.note}


def started(device: str | None) -> Result:
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    versions["driver"] = probe_driver(()).version or "unknown" if device else None
    if device:
        on = f"{device}, driver {versions['driver']}, CUDA {versions['cuda']}, PyTorch {versions['torch']}. {TIMING}"
    else:
        on = "a dry run without a GPU. It lists the grid and its floors; no figure of a GPU exists in it."
    introduction = f"Written by `benchmarks/scans_cuda.py` on {date[:10]}: {on}"
    return {"date": date, "device": device, "versions": versions, "introduction": introduction}


def compiled(architecture: str) -> Result:
    """Raises BuildError."""
    log, seconds = build(architecture)
    kernels = parse(log)
    spilled = sum(kernel.spilled_bytes for kernel in kernels)
    return {"architecture": architecture, "seconds": seconds, "kernels": len(kernels), "spilled_bytes": spilled}


def library_path(architecture: str, folder: Path = FOLDER) -> Path:
    return folder / architecture / "libvideossm_scans_cuda.so"


if __name__ == "__main__":
    sys.exit(main())
