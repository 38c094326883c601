"""The GPUs of this machine, by CUDA's driver, which is there wherever a GPU can be used; no package is needed."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MODULE_VERSION = Path("/proc/driver/nvidia/version")
# CUdevice_attribute; cuDeviceGetAttribute asks for one.
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A CUDA device. `free_bytes` is None where it was not asked for."""

    index: int
    name: str
    architecture: str  # compute capability 8.9 is sm_89
    total_bytes: int
    free_bytes: int | None


@dataclass(frozen=True)
class Driver:
    """`cuda`: the newest CUDA that it serves, as (13, 0). `version`: its own, where the system says it.

    `problem`: why no GPU can be used, None where one can.
    """

    cuda: tuple[int, int] | None = None
    version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


class _DriverError(Exception):
    pass


def capability(architecture: str) -> int:
    """Compute capability 8.9, sm_89, as 89."""
    return int(architecture.removeprefix("sm_"))


def is_architecture(text: str) -> bool:
    return re.fullmatch("sm_[1-9][0-9]+", text) is not None


def probe_driver(measured: Collection[int] | None = None) -> Driver:
    """Never raises. `measured`: the devices whose free memory is asked for, None for all: the question takes some."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return Driver(version=_version(), problem="no NVIDIA driver")
    return ask(library, measured)


def ask(library: Any, measured: Collection[int] | None = None) -> Driver:
    """`probe_driver` of the loaded `library`."""
    cuda = None
    try:
        served = ctypes.c_int()
        _call(library, "cuDriverGetVersion", ctypes.byref(served))
        cuda = (served.value // 1000, served.value % 1000 // 10)
        _call(library, "cuInit", 0)
        count = ctypes.c_int()
        _call(library, "cuDeviceGetCount", ctypes.byref(count))
        wanted = range(count.value) if measured is None else measured
        gpus = tuple(_gpu(library, index, index in wanted) for index in range(count.value))
    except (_DriverError, AttributeError) as error:  # the second: a driver too old for one of the functions
        return Driver(cuda, _version(), problem=str(error))
    return Driver(cuda, _version(), gpus, None if gpus else "the driver shows none")


def _gpu(library: Any, index: int, measure: bool) -> Gpu:
    device, total, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(_NAME_BYTES)
    _call(library, "cuDeviceGet", ctypes.byref(device), index)
    _call(library, "cuDeviceGetName", name, _NAME_BYTES, device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(total), device)
    capability = [ctypes.c_int(), ctypes.c_int()]
    for value, attribute in zip(capability, (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR), strict=True):
        _call(library, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    architecture = f"sm_{capability[0].value}{capability[1].value}"
    free = _free_bytes(library, device) if measure else None
    return Gpu(index, name.value.decode(errors="replace"), architecture, total.value, free)


def _free_bytes(library: Any, device: ctypes.c_int) -> int | None:
    """None for a device that gives no context, as one in exclusive use does."""
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    try:
        _call(library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    except _DriverError:
        return None
    try:
        _call(library, "cuCtxPushCurrent_v2", context)
        _call(library, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        _call(library, "cuCtxPopCurrent_v2", ctypes.byref(context))
        return free.value
    except _DriverError:
        return None
    finally:
        library.cuDevicePrimaryCtxRelease_v2(device)


def _call(library: Any, function: str, *arguments: Any) -> None:
    status = getattr(library, function)(*arguments)
    if status != 0:
        name = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(name))
        raise _DriverError(f"{function} gives {name.value.decode() if name.value else status}")


def _version() -> str | None:
    """The version of the kernel's module, as 580.65.06."""
    try:
        first_line = _MODULE_VERSION.read_text().partition("\n")[0]
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", first_line)
    return found[1] if found else None
