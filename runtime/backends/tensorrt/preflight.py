"""What keeps TensorRT from building a plan on this machine, found before minutes are spent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from videossm.runtime.backends.tensorrt.module import MODULES, Log, find_tensorrt
from videossm.runtime.backends.tensorrt.network import parse_network
from videossm.runtime.driver import capability, is_architecture
from videossm.runtime.errors import Problem
from videossm.runtime.machine import Machine, check_free
from videossm.runtime.plan import Plan

LOWERINGS = {"tensorrt": ("standard", "plugin"), "tensorrt-rtx": ("standard",)}  # that each of them can build
# What an engine of TensorRT-RTX is for if nothing is named, as its documentation has it, and all GPUs later than these.
PORTABLE = ("sm_80", "sm_86", "sm_89", "sm_120")

# The first compute capability with tensor cores for it; what the builder refuses before, too.
_FIRST = {"bf16": "sm_80", "fp8": "sm_89"}
# In every precision a plan keeps some matrix products in fp32, which TensorRT-RTX 1.7 refuses for Turing.
_RTX_FIRST = "sm_80"
# Least memory of a build, measured with TensorRT-RTX 1.7: the whole process took 0.4 GB and 2.3 to 2.6 times the
# weights, of 6 to 422 MB, whatever the number of architectures.
_BUILD_BYTES, _BUILD_PER_WEIGHT = 400_000_000, 2.3
# Engines hold kernels beside weights: those of `shapes`, whose weights are few, took 1.5 to 2.4 times its graphs.
_ENGINES_PER_GRAPHS = 2.5


def check_build(
    backend: str, precision: str, architectures: Sequence[str], lowering: str, machine: Machine
) -> list[Problem]:
    """What keeps `backend` (tensorrt, tensorrt-rtx) on `machine` from building such a plan; needs no graph.

    `architectures` as sm_89: for TensorRT-RTX, none for a portable engine. TensorRT builds for the GPU that it finds.
    """
    problems = []
    problem = machine.packages[backend].problem
    if problem is not None:
        problems.append(problem)
    if lowering not in LOWERINGS[backend]:
        why = {
            "plugin": ", which takes no plugins",
            "contrib": ", whose parser lacks LinearAttention",
            "native": ", which is ONNX Runtime's",
        }
        got = f"{lowering} for {backend}{why.get(lowering, '')}"
        problems.append(Problem("lowering", got, "standard", "export with --lowering standard"))
    check = _check_rtx if backend == "tensorrt-rtx" else _check_tensorrt
    return problems + list(check(precision, architectures, machine))


def check_plan(plan: Plan, backend: str, architectures: Sequence[str], machine: Machine, folder: Path) -> list[Problem]:
    """What keeps `videossm-export PLAN --backend ...` from building a plan of ONNX graphs in `folder`."""
    manifest = plan.manifest
    if manifest.backend in MODULES:
        expected = "one of ONNX graphs, as engines cannot be built again"
        return [Problem("plan", f"one for {manifest.backend}", expected, "export with --backend onnxruntime")]
    problems = check_build(backend, manifest.precision, architectures, manifest.lowering, machine)
    files = {name: plan.path / engine.file for name, engine in manifest.engines.items()}
    trt = find_tensorrt(backend)
    can_parse = backend == "tensorrt-rtx" or machine.gpus  # TensorRT does nothing at all without one
    # Of another lowering the nodes are known to be refused, and a plugin must not reach TensorRT-RTX's parser.
    if manifest.lowering == "standard" and can_parse and not isinstance(trt, Problem):
        problems += check_graphs(trt, files)
    return problems + check_room(files, folder, machine)


def check_precision(precision: str, architecture: str) -> Iterator[Problem]:
    """TensorRT's engines in `precision` need GPUs of some age."""
    first = _FIRST.get(precision)
    if first is not None and capability(architecture) < capability(first):
        do = f"choose --precision {'int8' if precision == 'fp8' else 'fp16'}, or another GPU"
        yield Problem("precision", f"{precision} on {architecture}", f"{first} or later for it", do)


def portable_architectures(precision: str) -> tuple[str, ...]:
    """Those that an engine of TensorRT-RTX is for if none is named, and that can run `precision`."""
    return tuple(architecture for architecture in PORTABLE if not list(check_precision(precision, architecture)))


def check_graphs(trt: Any, files: Mapping[str, Path]) -> list[Problem]:
    """What the parser of the module `trt` refuses in the ONNX `files`, by engine: a problem for each node.

    Not for graphs of the lowering `plugin` and TensorRT-RTX: with the plugins' library loaded it ends the process.
    """
    problems = []
    for engine, file in files.items():
        log = Log(trt)
        for refusal in parse_network(trt, trt.Builder(log.logger), log, file)[1]:
            do = "export it with --lowering standard, or report it"
            problems.append(Problem(f"{engine} ({file.name})", refusal, "what the parser takes", do))
    return problems


def check_room(files: Mapping[str, Path], folder: Path, machine: Machine) -> list[Problem]:
    """Whether there is memory to build the engines of the ONNX `files` in turn, and space for them in `folder`."""
    sizes = [_size_bytes(file) for file in files.values()]
    memory, disk = _BUILD_BYTES + int(_BUILD_PER_WEIGHT * max(sizes)), int(_ENGINES_PER_GRAPHS * sum(sizes))
    return [
        *check_free("memory", memory, machine.memory_free_bytes, "end other programs, or build on another machine"),
        *check_free(f"disk at {folder}", disk, shutil.disk_usage(folder).free, "make room, or change -o"),
    ]


def rtx_architectures() -> tuple[str, ...]:
    """Those that TensorRT-RTX can build a plan for; none where it does not start."""
    trt = find_tensorrt("tensorrt-rtx")
    members = () if isinstance(trt, Problem) else trt.ComputeCapability.__members__
    known = (f"sm_{name[2:]}" for name in members if name.startswith("SM"))
    return tuple(name for name in known if capability(name) >= capability(_RTX_FIRST))


def _check_rtx(precision: str, architectures: Sequence[str], machine: Machine) -> Iterator[Problem]:
    known = rtx_architectures()
    for architecture in architectures:
        numbered = is_architecture(architecture)
        if numbered and (architecture in known or not known):
            yield from check_precision(precision, architecture)
            continue
        do = "choose one, or leave it out for all of them"
        if numbered:
            do = f"choose one; on a machine with {architecture} export with --backend tensorrt, or onnxruntime for CUDA"
        expected = f"one of {', '.join(known)}" if known else "one as sm_89"
        yield Problem("--gpu-arch", f"{architecture} for tensorrt-rtx", expected, do)


def _check_tensorrt(precision: str, architectures: Sequence[str], machine: Machine) -> Iterator[Problem]:
    if architectures:
        expected = "none, as it builds for the GPU that it finds"
        yield Problem("--gpu-arch", f"{', '.join(architectures)} for tensorrt", expected, "leave it out")
    if not machine.gpus:
        got = f"tensorrt on a machine without a GPU ({machine.driver.problem})"
        yield Problem("backend", got, "the GPU to build for", "build there, or choose --backend tensorrt-rtx")
    for gpu in machine.gpus[:1]:  # the one that it builds for
        yield from check_precision(precision, gpu.architecture)


def _size_bytes(file: Path) -> int:
    """With the external data beside it, which the exporter names after the graph."""
    return sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*"))
