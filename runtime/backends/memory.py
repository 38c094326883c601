"""Buffers: NumPy memory on the host, device memory through CUDA's runtime.

The CUDA side has not yet run on a GPU; its arithmetic is tested over the host's memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.errors import BackendError


class HostBuffer:
    """A tensor in NumPy memory."""

    device = ("cpu", 0)

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def contiguous(self) -> bool:
        return self.array.flags.c_contiguous

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    def part(self, start: int, stop: int) -> HostBuffer:
        return HostBuffer(self.array[:, start:stop])

    def write(self, values: NDArray[Any]) -> None:
        np.copyto(self.array, values, casting="same_kind")

    def read(self) -> NDArray[Any]:
        return self.array.copy()


def load_cudart() -> Any:
    """cuda-python's runtime bindings; raises BackendError when the extra is not installed."""
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError as error:
        raise BackendError("device: got cuda, expected cuda-python beside it; pip install 'videossm[gpu]'") from error
    return runtime


class CudaBuffer:
    """A tensor in device memory: `shape[0]` rows, `pitch_bytes` apart, each contiguous."""

    def __init__(
        self,
        cudart: Any,
        index: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        whole: CudaBuffer | None = None,
        offset_bytes: int = 0,
    ) -> None:
        self._cudart = cudart
        self._whole = whole  # keeps the memory alive
        self.device = ("cuda", index)
        self.shape = shape
        self.dtype = dtype
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        if whole is None:
            self.pitch_bytes = self.row_bytes
            self.address = int(self._call("cudaMalloc", self.size_bytes))
            self._call("cudaMemset", self.address, 0, self.size_bytes)
            self.synchronize()
        else:
            self.pitch_bytes = whole.pitch_bytes
            self.address = whole.address + offset_bytes

    @property
    def size_bytes(self) -> int:
        return self.shape[0] * self.row_bytes

    @property
    def contiguous(self) -> bool:
        return self.shape[0] == 1 or self.pitch_bytes == self.row_bytes

    def part(self, start: int, stop: int) -> CudaBuffer:
        unit = self.row_bytes // self.shape[1]
        shape = (self.shape[0], stop - start, *self.shape[2:])
        return CudaBuffer(self._cudart, self.device[1], shape, self.dtype, self, start * unit)

    def write(self, values: NDArray[Any]) -> None:
        host = np.ascontiguousarray(np.broadcast_to(values, self.shape), dtype=self.dtype)
        self._copy(self.address, self.pitch_bytes, host.ctypes.data, self.row_bytes, "cudaMemcpyHostToDevice")
        self.synchronize()  # engines run on streams of their own, which wait for no copy

    def read(self) -> NDArray[Any]:
        host = np.empty(self.shape, self.dtype)
        self._copy(host.ctypes.data, self.row_bytes, self.address, self.pitch_bytes, "cudaMemcpyDeviceToHost")
        return host

    def copy_from(self, source: CudaBuffer) -> None:
        """Queues the copy; `synchronize` waits for it."""
        kind = "cudaMemcpyDeviceToDevice"
        self._copy(self.address, self.pitch_bytes, source.address, source.pitch_bytes, kind)

    def synchronize(self) -> None:
        self._call("cudaDeviceSynchronize")

    def _copy(self, target: int, target_pitch: int, source: int, source_pitch: int, kind: str) -> None:
        kind_value = getattr(self._cudart.cudaMemcpyKind, kind)
        rows = self.shape[0]
        self._call("cudaMemcpy2D", target, target_pitch, source, source_pitch, self.row_bytes, rows, kind_value)

    def _call(self, function: str, *arguments: Any) -> Any:
        """On this buffer's device: the current one is the calling thread's, whatever it was."""
        self._check("cudaSetDevice", self.device[1])
        return self._check(function, *arguments)

    def _check(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._cudart, function)(*arguments)
        if int(status) != 0:
            raise BackendError(
                f"{function}: got CUDA error {status!s}, expected success; is the device free and large enough?"
            )
        return values[0] if values else None

    def __del__(self) -> None:
        if self._whole is None and hasattr(self, "address"):
            self._cudart.cudaFree(self.address)
