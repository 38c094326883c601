"""What this machine has to build and run plans with."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from videossm.runtime.backends.tensorrt.module import MODULES, find_tensorrt
from videossm.runtime.driver import Driver, Gpu, probe_driver
from videossm.runtime.errors import Problem
from videossm.runtime.processor import Processor, probe_processor

BACKENDS = ("onnxruntime", *MODULES)
CUDA_BINDINGS = "cuda-bindings"  # what the runtime reaches a GPU with

_MEMORY = Path("/proc/meminfo")
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Package:
    """A package that a backend needs: its `version`, or the `problem` with it."""

    version: str | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class Machine:
    """None stands for what could not be found out.

    Args:
        packages: the backends that were looked for, and CUDA_BINDINGS.
        providers: ONNX Runtime's.
    """

    python: str
    system: str
    cpu_threads: int
    memory_bytes: int | None
    memory_free_bytes: int | None
    packages: dict[str, Package] = field(default_factory=dict)
    providers: tuple[str, ...] = ()
    driver: Driver = field(default_factory=Driver)
    processor: Processor = field(default_factory=Processor)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return self.driver.gpus


def probe_machine(backends: Collection[str] = BACKENDS, measured: Collection[int] | None = None) -> Machine:
    """Never raises: what is missing is part of the answer.

    Loads the libraries of `backends`. `measured`: the GPUs whose free memory to ask for, None for all; where it is
    empty, nothing is looked for that a CPU does without.
    """
    look = measured is None or bool(measured)
    packages = {backend: _package(backend) for backend in backends}
    if look:
        packages[CUDA_BINDINGS] = _imported("cuda.bindings", "pip install cuda-bindings")
    memory, free = probe_memory()
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu_threads=_cpu_threads(),
        memory_bytes=memory,
        memory_free_bytes=free,
        packages=packages,
        providers=_providers() if packages.get("onnxruntime", Package()).version else (),
        driver=probe_driver(measured) if look else Driver(problem="not looked for"),
        processor=probe_processor(),
    )


def check_free(what: str, need_bytes: int, free_bytes: int | None, do: str) -> list[Problem]:
    """A problem where less is free than needed; none where it is not known."""
    if free_bytes is None or free_bytes >= need_bytes:
        return []
    return [Problem(what, f"{free_bytes / 1e9:.2f} GB free", f"at least {need_bytes / 1e9:.2f} GB", do)]


def _package(backend: str) -> Package:
    if backend not in MODULES:
        return _imported(backend, "pip install videossm")
    found = find_tensorrt(backend)
    return Package(problem=found) if isinstance(found, Problem) else Package(found.__version__)


def _imported(module: str, do: str) -> Package:
    try:
        return Package(import_module(module).__version__)
    except ModuleNotFoundError:
        return Package(problem=Problem(f"package {module}", "none installed", "it", do))
    except Exception as error:  # a library that it needs: whatever it raises, it is not there
        return Package(
            problem=Problem(
                f"package {module}", f"one that cannot start ({error})", "one that does", "install it again"
            )
        )


def _providers() -> tuple[str, ...]:
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _cpu_threads() -> int:
    """The number of threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def probe_memory() -> tuple[int | None, int | None]:
    """Bytes of the host's memory in all and free, within the container's limit; None where the system does not say."""
    try:
        lines = (line.split() for line in _MEMORY.read_text().splitlines())
        kilobytes = {words[0]: int(words[1]) for words in lines}
        total, free = 1024 * kilobytes["MemTotal:"], 1024 * kilobytes["MemAvailable:"]
    except (OSError, KeyError, ValueError):
        return None, None
    try:
        limit = int(_CONTAINER_LIMIT.read_text())
    except (OSError, ValueError):  # none, or "max"
        return total, free
    return min(total, limit), min(free, limit)
