"""What can be said about building engines, on a command line and to the builder.

The two backends have different options. TensorRT-RTX ignores the builder level, keeps no timing cache, builds no
engines for later versions and runs no plugins. It builds a refittable engine for one architecture at most, and only on
a machine with a GPU (1.7 starts CUDA while it compiles one). TensorRT builds for the GPU that it finds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from videossm.runtime.backends.tensorrt.module import MODULES
from videossm.runtime.errors import UserError
from videossm.runtime.machine import Machine

VERBOSITIES = ("none", "layer_names_only", "detailed")
HARDWARE = ("ampere_plus", "same_compute_capability")
LEVELS = range(6)
BUILDING_GPUS = (0,)  # that may be used: TensorRT builds for the first
ONLY = {  # the options that one of the backends has
    "gpu_arch": "tensorrt-rtx",
    "builder_level": "tensorrt",
    "timing_cache": "tensorrt",
    "version_compatible": "tensorrt",
    "hardware_compatible": "tensorrt",
    "plugins": "tensorrt",
}


@dataclass(frozen=True)
class TensorRtOptions:
    """How engines are built. None, False or empty: not asked for.

    Args:
        gpu_arch: architectures as sm_89, all in each engine; without one a TensorRT-RTX engine is portable.
        workspace: most scratch memory of a layer, in MiB.
        builder_level: 0 builds fastest, 5 looks longest for fast kernels.
        timing_cache: file of kernels' timings, read if it is there, written after each engine.
        profiling_verbosity: what an engine tells of its layers, of VERBOSITIES.
        refit: other weights can be put into the engines later.
        strip_weights: engines without weights, which are put in when a plan is loaded.
        weight_streaming: weights may stay in host memory and come when needed.
        version_compatible: later versions of TensorRT take the engines.
        hardware_compatible: other GPUs take the engines, of HARDWARE.
        plugins: library with the scans' plugins, for the lowering `plugin`. The engines with scans hold it, which makes
            them version-compatible, as TensorRT wants it; others stay as they are, since such engines can be slower.
    """

    gpu_arch: tuple[str, ...] = ()
    workspace: int | None = None
    builder_level: int | None = None
    timing_cache: Path | None = None
    profiling_verbosity: str | None = None
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False
    hardware_compatible: str | None = None
    plugins: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "gpu_arch", tuple(dict.fromkeys(self.gpu_arch)))  # a builder refuses one twice

    @property
    def given(self) -> list[str]:
        """The names of the options that are set."""
        return [field.name for field in fields(self) if getattr(self, field.name) not in (None, False, ())]

    def check(self, backend: str, machine: Machine) -> None:
        """Raises UserError for an option that `backend` has no use for, or a value that cannot be used.

        Architectures are checked by the preflight.
        """
        for name in self.given:
            if backend not in MODULES or ONLY.get(name, backend) != backend:
                expected = ONLY.get(name, " or ".join(MODULES))
                raise UserError(f"{_option(name)}: got it with {backend}, expected --backend {expected}; leave it out")
        self._check_values()
        if backend == "tensorrt-rtx" and (self.refit or self.strip_weights):
            self._check_refit(machine)

    def _check_values(self) -> None:
        if self.workspace is not None and self.workspace < 1:
            raise UserError(f"--workspace: got {self.workspace}, expected 1 MiB or more; change it")
        if self.builder_level is not None and self.builder_level not in LEVELS:
            raise UserError(f"--builder-level: got {self.builder_level}, expected 0 to {LEVELS[-1]}; change it")
        for option, got, known in (
            ("--profiling-verbosity", self.profiling_verbosity, VERBOSITIES),
            ("--hardware-compatible", self.hardware_compatible, HARDWARE),
        ):
            if got is not None and got not in known:
                raise UserError(f"{option}: got {got}, expected one of {', '.join(known)}; choose one")
        if self.plugins is not None and not self.plugins.is_file():
            raise UserError(f"--plugins: got {self.plugins}, which is no file, expected a library; `make plugins`")
        if self.timing_cache is not None and not self.timing_cache.absolute().parent.is_dir():
            raise UserError(
                f"--timing-cache: got {self.timing_cache}, whose folder does not exist, expected one that does; make it"
            )

    def _check_refit(self, machine: Machine) -> None:
        option = "--strip-weights" if self.strip_weights else "--refit"
        if not machine.driver.gpus:
            raise UserError(
                f"{option}: got it without a GPU, expected one, without which tensorrt-rtx builds no refittable "
                "engine; leave it out, or build on a machine with a GPU"
            )
        if len(self.gpu_arch) > 1:
            raise UserError(
                f"{option}: got it with {len(self.gpu_arch)} architectures, expected at most one; build a plan for each"
            )


def tensorrt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to `command`, which gets them as one argument `building`."""

    @functools.wraps(command)
    def collected(*args: Any, **options: Any) -> Any:
        own = {field.name: options.pop(field.name) for field in fields(TensorRtOptions)}
        return command(*args, building=TensorRtOptions(**own), **options)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_OPTIONS = (
    click.option(
        "--gpu-arch",
        multiple=True,
        metavar="sm_NN",
        help="tensorrt-rtx: build for this architecture; may be repeated. Portable if not given.",
    ),
    click.option(
        "--workspace",
        type=int,
        metavar="MIB",
        help="tensorrt, tensorrt-rtx: most scratch memory that a layer may take.",
    ),
    click.option(
        "--builder-level",
        type=int,
        help="tensorrt: 0 builds fastest, 5 runs fastest; 3 if not given.",
    ),
    click.option(
        "--timing-cache",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="tensorrt: a file of kernels' timings, read where it exists and written after each engine.",
    ),
    click.option(
        "--profiling-verbosity",
        help=f"tensorrt, tensorrt-rtx: what engines tell a profiler; one of {', '.join(VERBOSITIES)}.",
    ),
    click.option("--refit", is_flag=True, help="tensorrt, tensorrt-rtx: build engines that take other weights later."),
    click.option(
        "--strip-weights",
        is_flag=True,
        help="tensorrt, tensorrt-rtx: put the weights beside the engines.",
    ),
    click.option(
        "--weight-streaming", is_flag=True, help="tensorrt, tensorrt-rtx: let weights stay in the host's memory."
    ),
    click.option("--version-compatible", is_flag=True, help="tensorrt: build engines that later versions run."),
    click.option(
        "--hardware-compatible", help=f"tensorrt: build engines that other GPUs run; one of {', '.join(HARDWARE)}."
    ),
    click.option(
        "--plugins",
        type=click.Path(path_type=Path),
        metavar="LIBRARY",
        help="tensorrt: scans by plugins of this library, which goes into the engines that have scans.",
    ),
)
