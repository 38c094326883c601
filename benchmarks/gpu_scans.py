"""The CUDA scans on a GPU, as parts of gpu_session.py: built, checked, and timed beside others.

Every case of scan_cases.py is compared with float64 (whole, split in two, state in place), a few run under
compute-sanitizer, and the grid of scan_floors.py is timed against the device's measured rates and, at VideoSSM's
shapes, in turn with flash-linear-attention, mamba-ssm and PyTorch. What is not there is left out with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import torch
from gpu_session_parts import Item, PartFile, Row
from kernel_resources import FOLDER, build, missing_tools, parse
from scan_cases import Case, name
from scan_checks import TOOLS, all_cases, check, few_cases, sanitized
from scan_floors import Rates, Shape, floor, gated_grid, is_of_videossm, selective_grid
from scan_peers import Peer, gated_peers, selective_peers
from scan_speed import flush_buffer, measure, measure_rates

from videossm.plugins_trt import ScanLibrary
from videossm.runtime.driver import probe_driver

LEAST_ARCHITECTURE = 80


def why_not_here() -> str | None:
    if not torch.cuda.is_available():
        return f"device: got no GPU that PyTorch {torch.__version__} sees, expected one; install PyTorch for CUDA"
    architecture = int(_architecture())
    if architecture < LEAST_ARCHITECTURE:
        return f"device: got compute capability {architecture / 10}, expected at least 8.0"
    return missing_tools()


def device() -> Iterator[Item]:
    """Its name and driver, and the rates that it reaches."""
    yield Item("gpu", _gpu)
    yield Item("rates", _rates)


def compilation() -> Iterator[Item]:
    yield Item(f"sm_{_architecture()}", partial(compiled, _architecture()))


def checks() -> Iterator[Item]:
    """Every kernel once, then all cases."""
    processors = _multiprocessors()
    for case in dict.fromkeys([*few_cases(processors), *all_cases(processors)]):
        yield Item(f"{type(case).__name__}-{name(case)}", partial(_checked, case))


def sanitizers() -> Iterator[Item]:
    for tool in TOOLS:
        yield Item(tool, partial(sanitized, library_path(_architecture()), tool))


def speed(of_videossm: bool, folder: Path) -> Iterator[Item]:
    """Of VideoSSM's shapes, or of all others. `folder`: where the part `device` has left its rates."""
    rates = Rates(**PartFile(folder, "device").rows["rates"]["rates"])
    for scan, grid in grids().items():
        for shape in grid:
            if is_of_videossm(shape) is of_videossm:
                yield Item(f"{scan}-{shape}", partial(_timed, scan, shape, rates))


def _checked(case: Case) -> Row:
    return check(_library(), case, "cuda")


def _timed(scan: str, shape: Shape, rates: Rates) -> Row:
    return measure(_library(), shape, all_peers()[scan], rates, _flush()) | {"scan": scan, "passed": None}


def compiled(architecture: str) -> Row:
    """Raises BuildError."""
    log, seconds = build(architecture)
    kernels = parse(log)
    spilled = sum(kernel.spilled_bytes for kernel in kernels)
    row = {"architecture": architecture, "compiler_s": seconds, "kernels": len(kernels), "spilled_bytes": spilled}
    return row | {"passed": spilled == 0}


def listed(rates: Rates) -> dict[str, list[Row]]:
    """The grid with its floors, by scan."""
    return {
        scan: [{**asdict(shape), "of_videossm": is_of_videossm(shape), **floor(shape, rates)} for shape in grid]
        for scan, grid in grids().items()
    }


@cache
def all_peers() -> dict[str, list[Peer]]:
    return {"gated_delta": gated_peers(), "selective_scan": selective_peers()}


def grids() -> dict[str, Sequence[Shape]]:
    return {"gated_delta": gated_grid(), "selective_scan": selective_grid()}


def described(peer: Peer) -> dict[str, str]:
    return {"name": peer.name, "version": peer.version, "missing": peer.missing, "note": peer.note}


def library_path(architecture: str, folder: Path = FOLDER) -> Path:
    return folder / architecture / "libvideossm_scans_cuda.so"


def _gpu() -> Row:
    driver = probe_driver()
    (gpu, *_) = driver.gpus
    return {"name": gpu.name, "architecture": gpu.architecture, "driver": driver.version, "passed": None}


def _rates() -> Row:
    if why := why_not_here():
        return {"failed": why, "passed": None}
    rates = measure_rates()
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": probe_driver(()).version}
    found = {"device": rates.device, "multiprocessors": _multiprocessors(), "architecture": _architecture()}
    return {**found, "versions": versions, "rates": asdict(rates), "passed": None}


def _architecture() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def _multiprocessors() -> int:
    count: int = torch.cuda.get_device_properties(0).multi_processor_count
    return count


@cache
def _library() -> ScanLibrary:
    return ScanLibrary(library_path(_architecture()))


@cache
def _flush() -> torch.Tensor:
    return flush_buffer()
