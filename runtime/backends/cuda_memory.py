"""Tensors on a GPU, and the pinned memory of the host that their values pass through."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.backends.cuda import CudaDevice, CudaEvent, Memory

_SMALLEST = 256  # bytes of a staging block
_LARGEST = 4 << 20  # larger values go in pieces
_STAGED_BYTES = 32 << 20  # in blocks of one size,
_STAGED_BLOCKS = 64  # and how many of them at most
_LANDING_BLOCKS = 2
_ALIGNED = 256  # bytes: what cudaMalloc gives, and TensorRT asks for


class CudaMemory:
    """What the buffers of one device share: where values are staged, where they land, and who reads them meanwhile."""

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self.staging = _Staging(device)
        self.landing = _Landing(device)
        self._readers: dict[int, CudaEvent] = {}  # by a block's address: when the copy stream has read it

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> CudaBuffer:
        """Zeros."""
        memory = Memory(self.device, "buffers", math.prod(shape) * dtype.itemsize)
        self.device.call("cudaMemsetAsync", memory.address, 0, memory.size_bytes, self.device.compute)
        return CudaBuffer(self, memory, memory.address, math.prod(shape[1:]) * dtype.itemsize, shape, dtype)

    def fetch(self, buffer: CudaBuffer) -> CudaTransfer:
        """Queues the copy of `buffer` as it is now."""
        transfer, self._readers[buffer.memory.address] = self.landing.fetch(buffer)
        return transfer

    def close(self) -> None:
        """Closes the device, and with it every buffer."""
        self._readers.clear()
        self.device.close()

    def before_writing(self, addresses: Iterable[int]) -> None:
        """What is queued next overwrites the blocks at `addresses`: the compute stream waits for their readers."""
        for address in self._readers.keys() & addresses:
            self._readers.pop(address).hold(self.device.compute)


class CudaBuffer:
    """A tensor in device memory: `shape[0]` rows, `pitch_bytes` apart, each contiguous."""

    def __init__(
        self,
        shared: CudaMemory,
        memory: Memory,
        address: int,
        pitch_bytes: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self._shared = shared
        self.memory = memory  # all of the block that it is a part of
        self.address, self.pitch_bytes = address, pitch_bytes
        self.shape, self.dtype = shape, dtype
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self.device = ("cuda", shared.device.index)

    @property
    def size_bytes(self) -> int:
        return self.shape[0] * self.row_bytes

    @property
    def contiguous(self) -> bool:
        return self.shape[0] == 1 or self.pitch_bytes == self.row_bytes

    @property
    def bindable(self) -> bool:
        return self.contiguous and self.address % _ALIGNED == 0

    def part(self, start: int, stop: int) -> CudaBuffer:
        address = self.address + start * (self.row_bytes // self.shape[1])
        shape = (self.shape[0], stop - start, *self.shape[2:])
        return CudaBuffer(self._shared, self.memory, address, self.pitch_bytes, shape, self.dtype)

    def write(self, values: NDArray[Any]) -> None:
        host = np.ascontiguousarray(np.broadcast_to(values, self.shape), dtype=self.dtype)
        self._shared.before_writing([self.memory.address])
        rows = host.reshape(1 if self.contiguous else self.shape[0], -1).view(np.uint8)
        for index, row in enumerate(rows):
            self._shared.staging.send(self.address + index * self.pitch_bytes, row)

    def read(self) -> NDArray[Any]:
        host = np.empty(self.shape, self.dtype)
        device = self._shared.device
        self._copy_to_host(host.ctypes.data, device.compute)
        device.finish()
        return host

    def read_later(self) -> CudaTransfer:
        return self._shared.fetch(self)

    def copy_from(self, source: CudaBuffer) -> None:
        """Queues the copy of a buffer of the same shape on the same device."""
        device = self._shared.device
        self._shared.before_writing([self.memory.address])
        if self.contiguous and source.contiguous:
            device.copy(self.address, source.address, self.size_bytes, "DeviceToDevice", device.compute)
            return
        target, start = (self.address, self.pitch_bytes), (source.address, source.pitch_bytes)
        device.copy_rows(target, start, self.row_bytes, self.shape[0], "DeviceToDevice", device.compute)

    def _copy_to_host(self, address: int, stream: int) -> None:
        if self.contiguous:  # rows may be longer than the largest pitch that CUDA takes
            self._shared.device.copy(address, self.address, self.size_bytes, "DeviceToHost", stream)
            return
        target, start = (address, self.row_bytes), (self.address, self.pitch_bytes)
        self._shared.device.copy_rows(target, start, self.row_bytes, self.shape[0], "DeviceToHost", stream)


class CudaTransfer:
    """Values that land in a pinned block, from where `wait` takes them."""

    def __init__(self, buffer: CudaBuffer, block: _Block, landed: CudaEvent) -> None:
        self._shape, self._dtype, self._size_bytes = buffer.shape, buffer.dtype, buffer.size_bytes
        self._block: _Block | None = block
        self._landed = landed
        self._values: NDArray[Any] | None = None

    @property
    def ready(self) -> bool:
        return self._values is not None or self._landed.reached

    def wait(self) -> NDArray[Any]:
        if self._values is None:
            assert self._block is not None, "a block is given up only for its values"
            self._landed.wait()
            self._values = self._block.bytes[: self._size_bytes].copy().view(self._dtype).reshape(self._shape)
            self._block = None
        return self._values


class _Block:
    """Pinned memory, and the host's view of it."""

    def __init__(self, device: CudaDevice, size_bytes: int) -> None:
        self.memory = Memory(device, "pinned", size_bytes)
        view = (ctypes.c_ubyte * size_bytes).from_address(self.memory.address)
        self.bytes: NDArray[np.uint8] = np.frombuffer(memoryview(view), np.uint8)


class _Staging:
    """Pinned blocks on the way to the device: a copy from pageable memory would wait for all that is queued.

    A block is free again once its copy is done; there are so many of each size that the host waits for one only
    when it is chunks ahead.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._blocks: dict[int, deque[tuple[_Block, CudaEvent]]] = {}  # by size, the one used longest ago first

    def send(self, address: int, values: NDArray[np.uint8]) -> None:
        """Queues the copy of `values` [N] to `address`; they may change once it returns."""
        for start in range(0, values.size, _LARGEST):
            piece = values[start : start + _LARGEST]
            block, copied = self._take(piece.size)
            block.bytes[: piece.size] = piece
            compute = self._device.compute
            self._device.copy(address + start, block.memory.address, piece.size, "HostToDevice", compute)
            copied.record(compute)

    def _take(self, size_bytes: int) -> tuple[_Block, CudaEvent]:
        size = max(_SMALLEST, 1 << (size_bytes - 1).bit_length())
        blocks = self._blocks.setdefault(size, deque())
        full = len(blocks) >= min(_STAGED_BLOCKS, _STAGED_BYTES // size)
        if blocks and (full or blocks[0][1].reached):
            block, copied = blocks.popleft()
            copied.wait()
        else:
            block, copied = _Block(self._device, size), CudaEvent(self._device)
        blocks.append((block, copied))
        return block, copied


class _Landing:
    """Pinned blocks on the way to the host, filled by the copy stream while the compute stream goes on.

    There are two. The third transfer takes the block of the first, whose values move into memory of their own if
    anybody still wants them: so the host is never more than two transfers ahead, and memory does not grow.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._filled = CudaEvent(device)
        self._transfers: deque[tuple[_Block, CudaEvent, weakref.ref[CudaTransfer]]] = deque()

    def fetch(self, buffer: CudaBuffer) -> tuple[CudaTransfer, CudaEvent]:
        """Queues the copy of `buffer`; the event is when it is read."""
        device = self._device
        block, landed = self._take(buffer.size_bytes), CudaEvent(device)
        self._filled.record(device.compute)
        self._filled.hold(device.copies)
        buffer._copy_to_host(block.memory.address, device.copies)
        landed.record(device.copies)
        transfer = CudaTransfer(buffer, block, landed)
        self._transfers.append((block, landed, weakref.ref(transfer)))
        return transfer, landed

    def _take(self, size_bytes: int) -> _Block:
        if len(self._transfers) < _LANDING_BLOCKS:
            return _Block(self._device, size_bytes)
        block, landed, reference = self._transfers.popleft()
        transfer = reference()
        if transfer is None:
            landed.wait()
        else:
            transfer.wait()
        return block if block.memory.size_bytes >= size_bytes else _Block(self._device, size_bytes)
