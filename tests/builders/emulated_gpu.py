"""The emulations of CUDA and TensorRT as shared libraries, for a runtime that is not written in Python.

tests/runtime/cpp/emulated has the libraries: each of their functions calls a hook, and each hook is a method of
EmulatedCuda or EmulatedTensorRt. They bear the names of the real ones, so who loads those by name gets these where they
are in the process already.
"""

from __future__ import annotations

import ctypes
import re
import threading
import traceback
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cuda.bindings import runtime as real
from emulated_cuda import EmulatedCuda
from emulated_tensorrt import EmulatedTensorRt

_UNKNOWN = 999  # CUDA's error
_TURN = threading.RLock()  # the emulation is of one thread, a GPU takes calls of many
_HANDLE, _SIZE = POINTER(c_void_p), POINTER(c_size_t)
# Functions of CUDA's runtime with their arguments. Results go where the pointers with a type point.
CUDA: dict[str, tuple[Any, ...]] = {
    "EventCreateWithFlags": (_HANDLE, c_uint),
    "EventDestroy": (c_void_p,),
    "EventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "EventRecord": (c_void_p, c_void_p),
    "EventSynchronize": (c_void_p,),
    "Free": (c_void_p,),
    "FreeHost": (c_void_p,),
    "GetDevice": (POINTER(c_int),),
    "GetDeviceCount": (POINTER(c_int),),
    "GetLastError": (),
    "GraphDestroy": (c_void_p,),
    "GraphExecDestroy": (c_void_p,),
    "GraphInstantiate": (_HANDLE, c_void_p, c_ulonglong),
    "GraphLaunch": (c_void_p, c_void_p),
    "Malloc": (_HANDLE, c_size_t),
    "MallocHost": (_HANDLE, c_size_t),
    "MemGetInfo": (_SIZE, _SIZE),
    "Memcpy2DAsync": (c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, real.cudaMemcpyKind, c_void_p),
    "MemcpyAsync": (c_void_p, c_void_p, c_size_t, real.cudaMemcpyKind, c_void_p),
    "MemsetAsync": (c_void_p, c_int, c_size_t, c_void_p),
    "SetDevice": (c_int,),
    "StreamBeginCapture": (c_void_p, real.cudaStreamCaptureMode),
    "StreamCreateWithFlags": (_HANDLE, c_uint),
    "StreamDestroy": (c_void_p,),
    "StreamEndCapture": (c_void_p, _HANDLE),
    "StreamSynchronize": (c_void_p,),
}
_RESULTS = (_HANDLE, _SIZE, POINTER(c_float), POINTER(c_int))
_ENUMERATIONS = (real.cudaMemcpyKind, real.cudaStreamCaptureMode)
# TensorRT's numbers of its types.
TYPES = {"FLOAT": 0, "HALF": 1, "INT32": 3, "UINT8": 5, "BF16": 7, "INT64": 8}
_USER_MANAGED = 2


class Tensor(ctypes.Structure):
    """As in nvinfer.cpp."""

    _fields_ = [
        ("name", c_char_p),
        *((name, c_int32) for name in ("mode", "type", "location", "rank")),
        ("shape", c_int64 * 8),
    ]


def write_stubs(header: Path, target: Path) -> None:
    """Classes that override all of the interfaces that nvinfer.cpp implements, by TensorRT's NvInferImpl.h."""
    text, stubs = header.read_text(), "using namespace nvinfer1;\n"
    for name in ("Runtime", "CudaEngine", "ExecutionContext"):
        body = text[text.index(f"class V{name} : public VRoot") :]
        functions = re.findall(r"virtual ([^;{}]*?) = 0;", body[: body.index("\n};")])
        lines = [f"{each} override {{ unexpected({_quoted_name(each)}); }}" for each in functions]
        stubs += f"class Stub{name} : public apiv::V{name} {{\npublic:\n" + "\n".join(lines) + "\n};\n"
    target.write_text(stubs)


def _quoted_name(function: str) -> str:
    return f'"{function.partition("(")[0].split()[-1]}"'


class _Library:
    """A shared library of hooks. `errors`: exceptions of the emulation, which cannot pass through C."""

    def __init__(self, file: Path) -> None:
        self.functions = ctypes.CDLL(str(file))
        self.errors: list[str] = []
        self._kept: list[Any] = []  # what C holds pointers to

    def hook(self, name: str, result: Any, arguments: Sequence[Any], function: Callable[..., Any], failed: int) -> None:
        def call(*values: Any) -> int:
            try:
                with _TURN:
                    return int(function(*values))
            except Exception:
                self.errors.append(traceback.format_exc())
                return failed

        self._kept.append(ctypes.CFUNCTYPE(result, *arguments)(call))
        c_void_p.in_dll(self.functions, f"hook_{name}").value = ctypes.cast(self._kept[-1], c_void_p).value


class CudaLibrary(_Library):
    """libcudart, which is `cuda` from now on."""

    def __init__(self, file: Path, cuda: EmulatedCuda) -> None:
        super().__init__(file)
        for name, arguments in CUDA.items():
            types = [c_int if each in _ENUMERATIONS else each for each in arguments]
            self.hook(name, c_int, types, _cuda_function(cuda, name, arguments), _UNKNOWN)
        self.hook("ErrorText", c_int, (c_int, POINTER(c_char), c_size_t), self._write_text, 0)
        self._explain = cuda.cudaGetErrorString

    def _write_text(self, status: int, text: Any, size: int) -> int:
        _, found = self._explain(real.cudaError_t(status))
        ctypes.memmove(text, found[: size - 1] + b"\0", min(len(found), size - 1) + 1)
        return 0


def _cuda_function(cuda: EmulatedCuda, name: str, arguments: Sequence[Any]) -> Callable[..., Any]:
    method = getattr(cuda, f"cuda{name}")

    def call(*values: Any) -> Any:
        pairs = list(zip(arguments, values, strict=True))
        given = [each(value) if each in _ENUMERATIONS else value for each, value in pairs if each not in _RESULTS]
        status, *results = method(*given)
        for target, result in zip([value for each, value in pairs if each in _RESULTS], results, strict=False):
            if result is not None:
                target[0] = result
        return status

    return call


class TensorRtLibrary(_Library):
    """libnvinfer, which is `trt` from now on."""

    def __init__(self, file: Path, trt: EmulatedTensorRt) -> None:
        super().__init__(file)
        self._trt = trt
        self._objects: dict[int, Any] = {}  # engines and contexts, by handle
        log = self.functions.emulated_log
        self._logger = SimpleNamespace(log=lambda severity, text: log(severity, text.encode()))
        for name, result, arguments, function in (
            ("runtime", c_int32, (), self._runtime),
            ("host_code", c_int32, (c_int32,), self._host_code),
            ("deserialize", c_int64, (c_void_p, c_size_t), self._deserialize),
            ("tensor", c_int32, (c_int64, c_int32, POINTER(Tensor)), self._tensor),
            ("number", c_int64, (c_int64, c_char_p), self._number),
            ("set_budget", c_int32, (c_int64, c_int64), self._set_budget),
            ("context", c_int64, (c_int64, c_int32), self._context),
            ("memory", c_int32, (c_int64, c_void_p, c_int64), self._memory),
            ("address", c_int32, (c_int64, c_char_p, c_void_p), self._address),
            ("enqueue", c_int32, (c_int64, c_void_p), self._enqueue),
            ("destroy", c_int32, (c_int64,), lambda handle: self._objects.pop(handle) is None),
        ):
            self.hook(name, result, arguments, function, 0)

    def _runtime(self) -> bool:
        if self._trt.refused("createInferRuntime", self._logger):
            return False
        self._trt.Runtime(self._logger)
        return True

    def _host_code(self, allowed: int) -> bool:
        self._trt.runtimes[-1].engine_host_code_allowed = bool(allowed)
        return True

    def _deserialize(self, blob: int, size_bytes: int) -> int:
        return self._handle(self._trt.runtimes[-1].deserialize_cuda_engine(ctypes.string_at(blob, size_bytes)))

    def _tensor(self, handle: int, index: int, tensor: Any) -> bool:
        engine = self._objects[handle]
        if index == engine.num_io_tensors:
            return False
        name = engine.get_tensor_name(index)
        shape = engine.get_tensor_shape(name)
        self._kept.append(name.encode())
        found = tensor[0]
        found.name, found.type = self._kept[-1], TYPES[engine.get_tensor_dtype(name).name]
        found.mode = 1 if engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT else 2
        found.location = int(engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE)
        found.rank, found.shape[: len(shape)] = len(shape), shape
        return True

    def _number(self, engine: int, name: bytes) -> int:
        return int(getattr(self._objects[engine], name.decode()))

    def _set_budget(self, engine: int, size_bytes: int) -> bool:
        self._objects[engine].weight_streaming_budget_v2 = size_bytes
        return True

    def _context(self, engine: int, strategy: int) -> int:
        assert strategy == _USER_MANAGED, "activations share a block"
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._handle(self._objects[engine].create_execution_context(managed))

    def _memory(self, context: int, address: int, size_bytes: int) -> bool:
        self._objects[context].set_device_memory(address, size_bytes)
        return True

    def _address(self, context: int, name: bytes, address: int) -> bool:
        return bool(self._objects[context].set_tensor_address(name.decode(), address))

    def _enqueue(self, context: int, stream: int) -> bool:
        return bool(self._objects[context].execute_async_v3(stream))

    def _handle(self, made: Any) -> int:
        if made is None:
            return 0
        self._objects[id(made)] = made
        return id(made)
