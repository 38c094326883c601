"""CUDA's streams on the host: memory is this process's, work is queued, and done as late, or in as odd an order, as
CUDA allows. What the runtime does on a GPU is tested on it; the arithmetic of a queued engine is ONNX Runtime's.
"""

# ruff: noqa: N802, N815 (names are CUDA's)
from __future__ import annotations

import ctypes
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np
from cuda.bindings import runtime as real

ERROR = real.cudaError_t
ORDERS = ("late", "early", "compute-first", "copies-first", "random")
_ALIGNED = 256  # bytes, as cudaMalloc promises
_INVALID = ERROR.cudaErrorInvalidValue
_FORBIDDEN, _INVALIDATED = ERROR.cudaErrorStreamCaptureUnsupported, ERROR.cudaErrorStreamCaptureInvalidated


@dataclass
class Mark:
    """A moment that an event was recorded at."""

    stream: int
    reached: bool = False
    time_ms: float = 0.0


@dataclass
class Work:
    """One entry of a stream: waits for `needs`, runs, reaches `mark`."""

    name: str
    run: Callable[[], None]
    needs: Mark | None = None
    mark: Mark | None = None
    cost_ms: float = 0.0


@dataclass
class Graph:
    works: list[Work] = field(default_factory=list)


def call(allowed_in_capture: bool = False) -> Callable[..., Any]:
    """A function of the runtime: counted, made to fail where a test says so, refused within a capture."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__

        @wraps(function)
        def called(self: EmulatedCuda, *arguments: Any) -> tuple[Any, ...]:
            self.calls.append((self.current, name))
            status = self.sticky or self._failure(name)
            if not status and self.capturing is not None and not allowed_in_capture:
                self.invalidated, status = True, _FORBIDDEN
            if status:
                if name == "cudaStreamEndCapture":
                    self.capturing = None  # it ends, whatever becomes of it
                return (status, None) if name in _RETURNING else (status,)
            return function(self, *arguments)

        return called

    return decorate


_RETURNING = {
    "cudaMalloc", "cudaMallocHost", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaGraphInstantiate",
    "cudaStreamEndCapture", "cudaEventElapsedTime", "cudaGetDeviceCount",
}  # fmt: skip


class EmulatedCuda:
    """Stands for `cuda.bindings.runtime`. `order`: which of the orders that CUDA allows work is done in.

    late: only what a wait needs; early: at once; compute-first, copies-first: one stream runs ahead of the other as
    far as it may; random: any of these, anew at every call.
    """

    cudaMemcpyKind, cudaError_t, cudaStreamCaptureMode = real.cudaMemcpyKind, ERROR, real.cudaStreamCaptureMode
    cudaStreamNonBlocking, cudaEventDisableTiming = real.cudaStreamNonBlocking, real.cudaEventDisableTiming
    cudaEventDefault = real.cudaEventDefault

    def __init__(self, order: str = "late", devices: int = 1) -> None:
        assert order in ORDERS, f"order: got {order}, expected one of {ORDERS}"
        self.order, self.devices = order, devices
        self.current: int | None = None
        self.calls: list[tuple[int | None, str]] = []  # (current device, function)
        self.done: list[str] = []  # names of work, in the order in which it was done
        self.waits: list[str] = []  # functions in which the host really waited
        self.blocks: dict[int, tuple[str, Any]] = {}  # address -> device or pinned, bytes
        self.streams: dict[int, deque[Work]] = {}
        self.events: dict[int, Mark | None] = {}
        self.graphs: dict[int, Graph] = {}
        self.capturing: tuple[int, Graph] | None = None
        self.invalidated = False
        self.sticky: Any = None
        self.clock_ms = 0.0
        self.memory_bytes, self.library_bytes = 1 << 30, 0  # of the device, and what libraries hold of it
        self._failures: dict[tuple[str, int], Any] = {}
        self._calls_of: Counter[str] = Counter()
        self._handles = iter(range(1, 1 << 30))
        self._random = random.Random(0)

    def fail(self, function: str, status: int, nth: int = 1) -> None:
        """The nth call of `function` from now on fails. `work`: a piece of queued work, and all that comes after it."""
        self._failures[function, self._calls_of[function] + nth] = ERROR(status)

    def queue(self, stream: int, work: Work) -> None:
        """At the end of `stream`, or of the graph that is captured from it."""
        if self.capturing is not None and self.capturing[0] == stream:
            self.capturing[1].works.append(work)
            return
        self.streams[stream].append(work)
        self._run_ahead()

    def queue_work(self, stream: int, name: str, run: Callable[[], None]) -> None:
        """A library's, which takes a millisecond."""
        self.queue(stream, Work(name, run, cost_ms=1.0))

    def run_graph(self, session: Any, addresses: Mapping[str, int]) -> None:
        """ONNX Runtime's `session` over device memory: reads the inputs' addresses now and fills the outputs'."""

        def array(tensor: Any) -> Any:
            dtype = np.dtype({"tensor(float)": "float32"}.get(tensor.type, tensor.type[len("tensor(") : -1]))
            size_bytes = int(np.prod(tensor.shape)) * dtype.itemsize
            bytes_of = self.view(addresses[tensor.name], size_bytes)
            assert bytes_of is not None and self.kind(addresses[tensor.name]) == "device", (
                f"{tensor.name}: illegal address"
            )
            return bytes_of.view(dtype).reshape(tensor.shape)

        feeds = {tensor.name: array(tensor).copy() for tensor in session.get_inputs()}
        targets = [array(tensor) for tensor in session.get_outputs()]
        for target in targets:
            target.view(np.uint8).fill(0xFF)  # whoever reads an output that is not yet there sees NaN
        for target, values in zip(targets, session.run(None, feeds), strict=True):
            target[...] = values

    def view(self, address: int, size_bytes: int) -> Any:
        """Bytes of one live block; None where they are not."""
        for start, (_, block) in self.blocks.items():
            if start <= address and address + size_bytes <= start + len(block):
                return np.frombuffer((ctypes.c_ubyte * size_bytes).from_address(address), np.uint8)
        return None

    def kind(self, address: int) -> str:
        for start, (kind, block) in self.blocks.items():
            if start <= address < start + len(block):
                return kind
        return "pageable"

    def bytes_of(self, kind: str) -> int:
        return sum(len(block) for which, block in self.blocks.values() if which == kind)

    def finish(self) -> None:
        """All streams."""
        while any(self.streams.values()):
            assert any([self._advance(stream) for stream in self.streams]), "streams wait for each other for ever"

    # Order

    def _run_ahead(self) -> None:
        first, *others = self.streams
        eager = {
            "late": [], "early": [first, *others], "compute-first": [first], "copies-first": others,
            "random": [stream for stream in self.streams if self._random.random() < 0.3],
        }[self.order]  # fmt: skip
        while any([self._advance(stream) for stream in eager]):
            if self.order == "random" and self._random.random() < 0.3:
                return

    def _reach(self, mark: Mark) -> None:
        """Does what stands before it, and in other streams what that needs."""
        while not mark.reached:
            head = self.streams[mark.stream][0]
            if head.needs is not None and not head.needs.reached:
                self._reach(head.needs)
            self._advance(mark.stream)

    def _advance(self, stream: int) -> bool:
        works = self.streams[stream]
        if not works or (works[0].needs is not None and not works[0].needs.reached):
            return False
        work = works.popleft()
        self.sticky = self.sticky or self._failure("work")
        if not self.sticky:
            work.run()
            self.done.append(work.name)
        self.clock_ms += work.cost_ms
        if work.mark is not None:
            work.mark.reached, work.mark.time_ms = True, self.clock_ms
        return True

    def _wait(self, function: str, mark: Mark) -> tuple[Any, ...]:
        if not mark.reached:
            self.waits.append(function)
            self._reach(mark)
        return (self.sticky or ERROR(0),)

    def _failure(self, name: str) -> Any:
        self._calls_of[name] += 1
        return self._failures.pop((name, self._calls_of[name]), None)

    # Devices and memory

    def cudaGetErrorString(self, status):
        return real.cudaGetErrorString(status)

    def cudaGetLastError(self):
        return (ERROR(0),)

    def cudaSetDevice(self, index):
        self.current = index
        return (ERROR(0) if 0 <= index < self.devices else ERROR.cudaErrorInvalidDevice,)

    def cudaGetDevice(self):
        return ERROR(0), self.current or 0

    def cudaGetDeviceCount(self):
        status = self._failure("cudaGetDeviceCount")
        return (status, None) if status else (ERROR(0), self.devices)

    def cudaMemGetInfo(self):
        assert self.current is not None, "of the current device"
        return ERROR(0), self.memory_bytes - self.library_bytes - self.bytes_of("device"), self.memory_bytes

    @call()
    def cudaMalloc(self, size_bytes):
        return ERROR(0), self._allocate("device", size_bytes)

    @call()
    def cudaMallocHost(self, size_bytes):
        return ERROR(0), self._allocate("pinned", size_bytes)

    def _allocate(self, kind: str, size_bytes: int) -> int:
        room = np.full(size_bytes + _ALIGNED, 0xFF, np.uint8)  # NaN
        start = -room.ctypes.data % _ALIGNED
        block = room[start : start + size_bytes]
        self.blocks[block.ctypes.data] = (kind, block)
        return block.ctypes.data

    @call()
    def cudaFree(self, address):
        return self._free("device", address)

    @call()
    def cudaFreeHost(self, address):
        return self._free("pinned", address)

    def _free(self, kind: str, address: int) -> tuple[Any, ...]:
        self.finish()
        if self.blocks.get(address, ("", None))[0] != kind:
            return (_INVALID,)
        del self.blocks[address]
        return (ERROR(0),)

    # Copies

    @call(allowed_in_capture=True)
    def cudaMemsetAsync(self, address, value, size_bytes, stream):
        target = self.view(address, size_bytes)
        if target is None:
            return (_INVALID,)
        self.queue(stream, Work("memset", lambda: target.fill(value)))
        return (ERROR(0),)

    def cudaMemcpyAsync(self, target, source, size_bytes, kind, stream):
        return self.cudaMemcpy2DAsync(target, size_bytes, source, size_bytes, size_bytes, 1, kind, stream)

    @call(allowed_in_capture=True)
    def cudaMemcpy2DAsync(self, target, target_pitch, source, source_pitch, width, rows, kind, stream):
        """From pageable memory it would wait for all that is queued: nothing here may do that. To it, it does."""
        ends = {"HostToDevice": ("pinned", "device"), "DeviceToDevice": ("device", "device")}
        name = kind.name.removeprefix("cudaMemcpy")
        got = (self.kind(source), self.kind(target))
        if width > min(target_pitch, source_pitch) or got not in (
            ends.get(name),
            ("device", "pinned"),
            ("device", "pageable"),
        ):
            return (_INVALID,)

        def run() -> None:
            for row in range(rows):
                ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)

        self.queue(stream, Work(f"copy {name}", run, mark=(mark := Mark(stream))))
        return self._wait("pageable copy", mark) if got[1] == "pageable" else (ERROR(0),)

    # Streams and events

    @call()
    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking, "the default stream waits for all others"
        handle = next(self._handles)
        self.streams[handle] = deque()
        return ERROR(0), handle

    @call()
    def cudaStreamDestroy(self, stream):
        while self._advance(stream):
            pass
        del self.streams[stream]
        return (ERROR(0),)

    @call()
    def cudaStreamSynchronize(self, stream):
        self.streams[stream].append(Work("end", lambda: None, mark=(mark := Mark(stream))))
        return self._wait("cudaStreamSynchronize", mark)

    @call(allowed_in_capture=True)
    def cudaStreamWaitEvent(self, stream, event, flags):
        if (mark := self.events[event]) is not None:
            self.queue(stream, Work("hold", lambda: None, needs=mark))
        return (ERROR(0),)

    @call(allowed_in_capture=True)
    def cudaEventCreateWithFlags(self, flags):
        handle = next(self._handles)
        self.events[handle] = None
        return ERROR(0), handle

    @call(allowed_in_capture=True)
    def cudaEventDestroy(self, event):
        del self.events[event]
        return (ERROR(0),)

    @call(allowed_in_capture=True)
    def cudaEventRecord(self, event, stream):
        mark = self.events[event] = Mark(stream)
        self.queue(stream, Work("record", lambda: None, mark=mark))
        return (ERROR(0),)

    @call()
    def cudaEventQuery(self, event):
        mark = self.events[event]
        return (ERROR(0) if mark is None or mark.reached else ERROR.cudaErrorNotReady,)

    @call()
    def cudaEventSynchronize(self, event):
        mark = self.events[event]
        return (ERROR(0),) if mark is None else self._wait("cudaEventSynchronize", mark)

    @call()
    def cudaEventElapsedTime(self, start, end):
        first, last = self.events[start], self.events[end]
        if not (first and last and first.reached and last.reached):
            return ERROR.cudaErrorNotReady, None
        return ERROR(0), last.time_ms - first.time_ms

    # Graphs

    @call()
    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal, "others may go on meanwhile"
        self.capturing, self.invalidated = (stream, Graph()), False
        return (ERROR(0),)

    @call(allowed_in_capture=True)
    def cudaStreamEndCapture(self, stream):
        assert self.capturing is not None and self.capturing[0] == stream, "no capture of this stream"
        graph, self.capturing = self.capturing[1], None
        if self.invalidated:
            return _INVALIDATED, None
        self.graphs[handle := next(self._handles)] = graph
        return ERROR(0), handle

    @call()
    def cudaGraphInstantiate(self, graph, flags):
        self.graphs[handle := next(self._handles)] = self.graphs[graph]
        return ERROR(0), handle

    @call(allowed_in_capture=True)
    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (ERROR(0),)

    @call()
    def cudaGraphExecDestroy(self, graph):
        del self.graphs[graph]
        return (ERROR(0),)

    @call()
    def cudaGraphLaunch(self, graph, stream):
        for work in self.graphs[graph].works:
            self.queue(stream, Work(work.name, work.run, cost_ms=work.cost_ms))
        return (ERROR(0),)
