"""`videossm-doctor`: what this machine can build and run, and what stands in the way of a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from videossm.runtime.backends.tensorrt.module import MODULES
from videossm.runtime.backends.tensorrt.preflight import check_plan, rtx_architectures
from videossm.runtime.cli import Command, print_json, print_text
from videossm.runtime.driver import Driver, Gpu
from videossm.runtime.errors import Problem, UserError, require_none
from videossm.runtime.machine import BACKENDS, CUDA_BINDINGS, Machine, Package, probe_machine
from videossm.runtime.plan import Plan
from videossm.runtime.preflight import GPU_PROVIDERS, check_run, remarks
from videossm.runtime.processor import expected_of_int8


@click.command(cls=Command)
@click.argument("plan", type=click.Path(), required=False)
@click.option("--device", metavar="cpu|cuda:N", help="To run PLAN on; the backend's own if not given.")
@click.option("--backend", metavar="|".join(MODULES), help="To build PLAN, of ONNX graphs, for.")
@click.option(
    "--gpu-arch",
    "architectures",
    multiple=True,
    metavar="sm_NN",
    help="With --backend tensorrt-rtx: for this architecture; may be repeated. Portable if not given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def doctor(
    plan: str | None,
    device: str | None,
    backend: str | None,
    architectures: tuple[str, ...],
    as_json: bool,
) -> None:
    """Shows what this machine has; with PLAN, whether it can run it, or with --backend build it.

    Every problem is a line on stderr, and the exit code is 2 if there is one.
    """
    _check_options(plan, device, backend, architectures)
    machine = probe_machine()
    problems: list[Problem] = []
    told: list[str] = []
    if plan is not None:
        opened = Plan.open(plan)
        if backend is None:
            problems, told = check_run(opened, machine, device), remarks(opened, machine, device)
        else:
            problems = check_plan(opened, backend, architectures, machine, Path.cwd())
    if as_json:
        found = {"problems": [asdict(problem) for problem in problems], "remarks": told}
        print_json({"machine": asdict(machine), "backends": abilities(machine), **found})
    elif plan is None:
        print_text("\n".join(_table(machine)))
    elif not problems:
        print_text(f"{plan}: nothing found that keeps it from being {'built' if backend else 'run'} here")
        for remark in told:
            print_text(remark)
    require_none(problems)


def _check_options(plan: str | None, device: str | None, backend: str | None, architectures: tuple[str, ...]) -> None:
    for option, given in (("--device", device), ("--backend", backend), ("--gpu-arch", architectures)):
        if plan is None and given:
            raise UserError(f"{option}: got it without a plan, expected PLAN; name one, or leave it out")
    if device is not None and backend is not None:
        raise UserError("--device: got --backend as well, expected one of them, to run or to build; leave one out")
    if backend is not None and backend not in MODULES:
        raise UserError(f"--backend: got {backend}, expected one of {', '.join(MODULES)}; choose one")
    if architectures and backend is None:
        raise UserError("--gpu-arch: got it without --backend, expected --backend tensorrt-rtx; add it")


def abilities(machine: Machine) -> dict[str, dict[str, list[str]]]:
    """By backend, the architectures that it `builds` engines for here, and the devices that it `runs` plans on."""
    works = {name for name, package in machine.packages.items() if package.problem is None}
    gpus = machine.gpus if CUDA_BINDINGS in works else ()
    by_onnxruntime = gpus if set(machine.providers) & set(GPU_PROVIDERS) else ()
    first = [gpu.architecture for gpu in machine.gpus[:1]]  # the one that TensorRT builds for
    rtx = list(rtx_architectures())
    able = {
        "onnxruntime": {"builds": [], "runs": ["cpu", *_names(by_onnxruntime)]},
        "tensorrt": {"builds": first, "runs": _names(gpus)},
        "tensorrt-rtx": {"builds": rtx, "runs": _names(gpu for gpu in gpus if gpu.architecture in rtx)},
    }
    return {name: able[name] if name in works else {"builds": [], "runs": []} for name in BACKENDS}


def _names(gpus: Iterable[Gpu]) -> list[str]:
    return [f"cuda:{gpu.index}" for gpu in gpus]


def _table(machine: Machine) -> Iterator[str]:
    able = abilities(machine)
    rows = [
        ("python", f"{machine.python}, {machine.system}"),
        ("cpu", machine.processor.text(machine.cpu_threads)),
        ("int8", expected_of_int8(machine.processor)),
        ("memory", _memory(machine.memory_bytes, machine.memory_free_bytes)),
        ("driver", _driver(machine.driver)),
        *((f"cuda:{gpu.index}", _gpu(gpu)) for gpu in machine.gpus),
        *((name, _package(package, able.get(name))) for name, package in machine.packages.items()),
    ]
    width = max(len(name) for name, _ in rows)
    yield from (f"{name:<{width}}  {value}" for name, value in rows)


def _driver(driver: Driver) -> str:
    cuda = f"CUDA {driver.cuda[0]}.{driver.cuda[1]}" if driver.cuda else None
    return ", ".join(filter(None, [driver.version, cuda, driver.problem]))


def _gpu(gpu: Gpu) -> str:
    return f"{gpu.name}, {gpu.architecture}, {_memory(gpu.total_bytes, gpu.free_bytes)}"


def _memory(total_bytes: int | None, free_bytes: int | None) -> str:
    if total_bytes is None:
        return "unknown"
    free = "" if free_bytes is None else f", {free_bytes / 1e9:.1f} GB free"
    return f"{total_bytes / 1e9:.1f} GB{free}"


def _package(package: Package, able: dict[str, list[str]] | None) -> str:
    """Its version and what it can do here, or what is wrong with it."""
    if package.problem is not None:
        return f"{package.problem.got}; {package.problem.do}"
    verbs = {"builds": "builds for", "runs": "runs on"}
    uses = [f"{verbs[verb]} {', '.join(found)}" for verb, found in (able or {}).items() if found]
    return f"{package.version}  {'; '.join(uses)}".rstrip()


if __name__ == "__main__":
    doctor()


if __name__ == "__main__":
    doctor()
