"""What keeps this machine from running a plan, found before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator

from videossm.runtime.backends import CONTRIB_SINCE, NATIVE_LIBRARY, NATIVE_VARIABLE, device_index
from videossm.runtime.backends.tensorrt.module import MODULES
from videossm.runtime.backends.tensorrt.preflight import check_precision
from videossm.runtime.driver import Gpu, capability
from videossm.runtime.errors import Problem, require_none
from videossm.runtime.machine import CUDA_BINDINGS, Machine, check_free, probe_machine, probe_memory
from videossm.runtime.manifest import Manifest, Target
from videossm.runtime.plan import Plan
from videossm.runtime.processor import expected_of_int8
from videossm.runtime.program import buffer_bytes
from videossm.runtime.prompt import check_tokenizer

# ONNX Runtime's execution providers that run engines on a CUDA device.
GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
WEIGHTS_SUFFIX = ".data"  # of a graph's external data, after the graph's own name
_CPU_PLAN = "for the CPU make a plan by videossm-export ... --backend onnxruntime"


def require_run(plan: Plan, device: str | None) -> None:
    """Raises PreflightError with all that keeps this machine from running `plan` on `device`.

    `device`: `cpu` or `cuda:N`; None for the backend's own. Looks at no more than the plan needs.
    """
    index = _index(plan.manifest, device)
    machine = probe_machine((plan.manifest.backend,), () if index is None else (index,))
    require_none(check_run(plan, machine, device))


def check_run(plan: Plan, machine: Machine, device: str | None = None) -> list[Problem]:
    """What keeps `machine` from running `plan` on `device`, as `require_run`; none if it can.

    Raises BackendError for an unknown device, PlanError for a broken tokenizer.
    """
    manifest = plan.manifest
    index = _index(manifest, device)
    if index is None:
        return [*_on_cpu(manifest, machine), *_tokenizer(plan)]
    if not machine.gpus:  # then nothing that could be installed here helps
        why = machine.driver.problem
        if manifest.backend in MODULES:
            return [
                Problem(
                    "device",
                    f"a plan for {manifest.backend} on a machine without a GPU ({why})",
                    "a GPU",
                    f"run it where there is one; {_CPU_PLAN}",
                )
            ]
        return [Problem("device", f"cuda:{index} on a machine without a GPU ({why})", "a GPU", "use --device cpu")]
    return [*_on_gpu(manifest, machine, index), *_tokenizer(plan)]


def remarks(plan: Plan, machine: Machine, device: str | None = None) -> list[str]:
    """What to expect of `plan` on `device` of `machine`, though it keeps nothing from running."""
    on_cpu = plan.manifest.backend not in MODULES and _index(plan.manifest, device) is None
    if plan.manifest.precision == "int8" and on_cpu:
        return [f"int8: {expected_of_int8(machine.processor)}"]
    return []


def device_bytes(manifest: Manifest) -> int:
    """What a rollout needs at least: the files of its engines, if no weights are streamed, and its buffers."""
    streams = manifest.target is not None and manifest.target.weight_streaming
    engines = manifest.engines.values()
    files = {engine.file for engine in engines} | {engine.weights for engine in engines if engine.weights}
    files |= {name for name in manifest.files if name.removesuffix(WEIGHTS_SUFFIX) in files}
    weights = 0 if streams else sum(manifest.files[name].size_bytes for name in files)
    return weights + buffer_bytes(manifest)


def require_memory(manifest: Manifest, device: str) -> None:
    """Raises PreflightError where `manifest` asks for more than `device` has, as far as the host can tell.

    A GPU tells it by itself as its memory is taken.
    """
    if device == "cpu":
        require_none(check_memory(manifest, probe_memory()[1]))


def check_memory(manifest: Manifest, free_bytes: int | None) -> list[Problem]:
    """Of the host."""
    return check_free("memory", device_bytes(manifest), free_bytes, "end other programs, or choose a smaller plan")


def _tokenizer(plan: Plan) -> list[Problem]:
    return check_tokenizer(plan.tokenizer_file) if plan.manifest.text else []


def _index(manifest: Manifest, device: str | None) -> int | None:
    if device is None:
        return 0 if manifest.backend in MODULES else None
    return device_index(device)


def _on_cpu(manifest: Manifest, machine: Machine) -> Iterator[Problem]:
    if manifest.backend in MODULES:
        yield Problem("device", f"cpu for a plan for {manifest.backend}", "cuda:N", f"leave --device out; {_CPU_PLAN}")
        return
    yield from _package(machine, manifest.backend)
    yield from _contrib(manifest, machine)
    if manifest.lowering == "native" and not os.environ.get(NATIVE_VARIABLE):
        expected = f"the path of {NATIVE_LIBRARY} for a plan of lowering native"
        yield Problem(NATIVE_VARIABLE, "none", expected, "make native, or export with another --lowering")
    if any(tensor.dtype == "bfloat16" for tensor in manifest.tensors()):
        yield Problem(
            "device",
            "cpu for a plan in bf16",
            "cuda:N, as ONNX Runtime has no such kernels on a CPU",
            "change --device, or export with --precision fp16 or fp32",
        )
    yield from check_memory(manifest, machine.memory_free_bytes)


def _on_gpu(manifest: Manifest, machine: Machine, index: int) -> Iterator[Problem]:
    backend = manifest.backend
    yield from _package(machine, backend)
    yield from _package(machine, CUDA_BINDINGS)
    yield from _driver(machine)
    if backend in MODULES:
        yield from _version(manifest, machine)
    else:
        yield from _contrib(manifest, machine)
        if manifest.lowering == "native":
            got, expected = f"cuda:{index} for a plan of lowering native", "cpu, which its scans run on"
            yield Problem("device", got, expected, "leave --device out, or export with another --lowering")
        yield from _providers(machine)
    if index >= len(machine.gpus):
        have = ", ".join(f"cuda:{gpu.index} ({gpu.name})" for gpu in machine.gpus)
        yield Problem("device", f"cuda:{index}", f"one of {have}", "change --device")
        return
    gpu = machine.gpus[index]
    if backend in MODULES:
        yield from _architecture(manifest, gpu)
    yield from check_free(
        f"memory of cuda:{index}",
        device_bytes(manifest),
        gpu.free_bytes,
        "end what else runs on it, or export a lower --precision",
    )


def _package(machine: Machine, name: str) -> Iterator[Problem]:
    problem = machine.packages[name].problem
    if problem is not None:
        yield problem


def _contrib(manifest: Manifest, machine: Machine) -> Iterator[Problem]:
    here = machine.packages["onnxruntime"].version
    if manifest.lowering == "contrib" and here is not None and _numbers(here) < _numbers(CONTRIB_SINCE):
        expected = f"{CONTRIB_SINCE} or later for a plan of lowering contrib"
        yield Problem("onnxruntime", f"version {here}", expected, "upgrade it, or export with --lowering standard")


def _providers(machine: Machine) -> Iterator[Problem]:
    if machine.providers and not any(provider in GPU_PROVIDERS for provider in machine.providers):
        yield Problem(
            "onnxruntime",
            f"one with {', '.join(machine.providers)}",
            f"one of {', '.join(GPU_PROVIDERS)}",
            "pip install 'videossm[gpu]' in place of onnxruntime, or use --device cpu",
        )


def _driver(machine: Machine) -> Iterator[Problem]:
    """A driver serves the CUDA of its own major version; NVIDIA's minor versions are compatible with each other."""
    bindings, driver = machine.packages[CUDA_BINDINGS].version, machine.driver
    if bindings is None or driver.cuda is None:
        return
    needed = int(bindings.partition(".")[0])
    if driver.cuda[0] < needed:
        got = f"{driver.version or 'one'}, for CUDA {driver.cuda[0]}.{driver.cuda[1]}"
        yield Problem("driver", got, f"one for CUDA {needed}", "update it")


def _version(manifest: Manifest, machine: Machine) -> Iterator[Problem]:
    """An engine runs in the very version that built it; TensorRT, if asked to, makes those that later ones take."""
    backend, target = manifest.backend, manifest.target
    built, here = manifest.versions.get(backend), machine.packages[backend].version
    if built is None or here is None or built == here:
        return
    if target is not None and target.version_compatible:
        if _numbers(here) >= _numbers(built):
            return
        expected = f"{built} or later"
    else:
        expected = built
    yield Problem(backend, f"version {here}", f"{expected}, which built the plan", "install that, or export again")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _architecture(manifest: Manifest, gpu: Gpu) -> Iterator[Problem]:
    target = manifest.target
    if target is not None and not _takes(target, gpu.architecture):
        again = f"--gpu-arch {gpu.architecture}" if manifest.backend == "tensorrt-rtx" else "on this machine"
        expected = " or ".join(target.architectures) + (" or later" if target.later else "")
        yield Problem(
            "device",
            f"{gpu.architecture} ({gpu.name})",
            f"{expected}, which the plan is for",
            f"export it again {again}",
        )
    else:
        yield from check_precision(manifest.precision, gpu.architecture)


def _takes(target: Target, architecture: str) -> bool:
    if architecture in target.architectures:
        return True
    return target.later and capability(architecture) > max(map(capability, target.architectures))
