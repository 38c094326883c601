"""Buffers. CUDA's are tested for their arithmetic, over a runtime that lives in the host's memory."""

# ruff: noqa: N802, N815 (names are CUDA's)
from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from videossm.runtime import BackendError
from videossm.runtime.backends.memory import CudaBuffer, HostBuffer, load_cudart


class HostCudart:
    """The functions of cuda-python's runtime that buffers call, on memory of this process."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)

    def __init__(self):
        self.blocks = {}
        self.calls = []  # (current device, function)
        self.current = 0

    def cudaSetDevice(self, index):
        self.current = index
        return (0,)

    def cudaMalloc(self, size_bytes):
        self.calls.append((self.current, "malloc"))
        block = ctypes.create_string_buffer(b"\xff" * size_bytes, size_bytes)
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaMemset(self, address, value, size_bytes):
        self.calls.append((self.current, "memset"))
        ctypes.memset(address, value, size_bytes)
        return (0,)

    def cudaFree(self, address):
        del self.blocks[address]
        return (0,)

    def cudaMemcpy2D(self, target, target_pitch, source, source_pitch, width, height, kind):
        self.calls.append((self.current, "copy"))
        assert width <= target_pitch and width <= source_pitch, "CUDA refuses rows wider than their pitch"
        for row in range(height):
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)
        return (0,)

    def cudaDeviceSynchronize(self):
        self.calls.append((self.current, "synchronize"))
        return (0,)


def host(shape, dtype):
    return HostBuffer(np.zeros(shape, dtype))


def cuda(shape, dtype):
    return CudaBuffer(HostCudart(), 0, shape, np.dtype(dtype))


@pytest.mark.parametrize("make", [host, cuda], ids=["host", "cuda"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8"])
def test_parts_are_slices_of_the_whole(make, batch, dtype):
    buffer, expected = make((batch, 6, 2, 2), dtype), np.zeros((batch, 6, 2, 2), dtype)
    assert np.array_equal(buffer.read(), expected), "zeros at first"
    values = np.arange(batch * 8).reshape(batch, 2, 2, 2).astype(dtype)
    part = buffer.part(2, 4)
    part.write(values)
    expected[:, 2:4] = values
    assert np.array_equal(buffer.read(), expected)
    assert np.array_equal(part.read(), values) and part.shape == values.shape
    assert part.contiguous == (batch == 1) and buffer.contiguous
    assert part.address == buffer.address + 2 * 4 * np.dtype(dtype).itemsize


def test_copies_between_parts_on_the_device():
    whole, small = cuda((2, 6, 3), "float32"), cuda((2, 2, 3), "float32")
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    small.write(values)
    whole.part(4, 6).copy_from(small)
    assert np.array_equal(whole.read()[:, 4:], values) and not whole.read()[:, :4].any()


def test_every_call_is_on_the_buffers_device_and_writes_are_waited_for():
    """Engines run on streams that wait for no copy, and another thread may have another current device."""
    cudart = HostCudart()
    buffer = CudaBuffer(cudart, 3, (1, 4), np.dtype("float32"))
    for operation in (lambda: buffer.write(np.ones((1, 4))), buffer.read, buffer.synchronize):
        cudart.current = 0
        operation()
    calls = ["malloc", "memset", "synchronize", "copy", "synchronize", "copy", "synchronize"]
    assert cudart.calls == [(3, call) for call in calls]


def test_device_memory_is_freed_once():
    cudart = HostCudart()
    buffer = CudaBuffer(cudart, 0, (1, 4), np.dtype("float32"))
    part = buffer.part(1, 2)
    del buffer
    assert len(cudart.blocks) == 1, "a part keeps the whole alive"
    del part
    assert not cudart.blocks


def test_written_values_take_the_buffers_dtype():
    for make in (host, cuda):
        buffer = make((1, 2), "float16")
        buffer.write(np.array([[0.1, 2.0]], np.float32))
        assert buffer.read().tolist() == np.array([[0.1, 2.0]], np.float16).tolist()


def test_cuda_errors_are_told(monkeypatch):
    monkeypatch.setattr(HostCudart, "cudaMalloc", lambda self, size_bytes: (2, 0))
    with pytest.raises(BackendError, match=r"^cudaMalloc: got CUDA error 2"):
        cuda((1, 4), "float32")


def test_missing_cuda_python_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"pip install 'videossm\[gpu\]'"):
        load_cudart()
