"""One GPU through CUDA's runtime: a stream where all work queues, one for copies to the host, events, graphs.

A device, and all that lies on it, belongs to one thread at a time. The device keeps what was opened on it: each thing
is given back when nothing refers to it any more, and all that is left when the device closes, in a fixed order.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from videossm.runtime.errors import BackendError

_PINNED = "pinned"  # a kind of memory that lies on the host
# Functions that give something back, in the order in which a device calls them as it closes.
_RELEASES = ("cudaGraphExecDestroy", "cudaEventDestroy", "cudaFree", "cudaFreeHost", "cudaStreamDestroy")


def load_cudart(otherwise: str) -> Any:
    """CUDA's runtime from cuda.bindings; raises BackendError, ending in `otherwise`, where they are not installed."""
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError as error:
        why = f"device: got a GPU without cuda.bindings, expected it; pip install 'cuda-bindings>=13', or {otherwise}"
        raise BackendError(why) from error
    return runtime


class CudaDevice:
    """`compute` and `copies` are its two streams. `otherwise`: what a user without such a device can do."""

    def __init__(self, index: int, otherwise: str) -> None:
        self.index = index
        self._streams: list[int] = []
        self._opened: dict[str, dict[int, weakref.finalize[Any, Any]]] = {function: {} for function in _RELEASES}
        self._cudart = load_cudart(otherwise)
        self._check_present(otherwise)
        self._capturing = self._closed = False
        self._unwanted: list[tuple[str, int]] = []
        self.taken = {"buffers": 0, "activations": 0, _PINNED: 0}  # bytes now, by kind
        try:
            for _ in range(2):
                self._streams.append(int(self.call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking)))
        finally:
            # The streams alone end with the device itself, so what ends them must not keep it alive.
            weakref.finalize(self, _destroy_streams, self._cudart, index, self._streams).atexit = False
        self.compute, self.copies = self._streams

    def use(self) -> None:
        """Makes it the calling thread's current device, for libraries that ask for that one."""
        if self._closed:
            raise BackendError(f"device: got cuda:{self.index} after it was closed, expected it open; open another")
        self._check("cudaSetDevice", self._cudart.cudaSetDevice(self.index))

    def call(self, function: str, *arguments: Any) -> Any:
        """A function of CUDA's runtime on this device. Raises BackendError."""
        self.use()
        return self._check(function, getattr(self._cudart, function)(*arguments))

    def copy(self, target: int, source: int, size_bytes: int, kind: str, stream: int) -> None:
        """Queues it. `kind`: HostToDevice, DeviceToHost or DeviceToDevice."""
        self.call("cudaMemcpyAsync", target, source, size_bytes, self._kind(kind), stream)

    def copy_rows(
        self, target: tuple[int, int], source: tuple[int, int], row_bytes: int, rows: int, kind: str, stream: int
    ) -> None:
        """Queues a copy of `rows` rows; `target` and `source` are (address, bytes from one row to the next)."""
        self.call("cudaMemcpy2DAsync", *target, *source, row_bytes, rows, self._kind(kind), stream)

    def memory_bytes(self) -> tuple[int, int]:
        """What is free on the device now, and all that it has."""
        self.use()
        status, free_bytes, total_bytes = self._cudart.cudaMemGetInfo()
        self._check("cudaMemGetInfo", (status,))
        return int(free_bytes), int(total_bytes)

    def finish(self) -> None:
        """Waits until all that was queued on the compute stream is done."""
        self.call("cudaStreamSynchronize", self.compute)

    def capture(self, queue: Callable[[], None], uses: object = None) -> CudaGraph:
        """What `queue` puts on the compute stream, as a graph. It is recorded, not executed.

        `uses`: what must stay as long as the graph. Raises BackendError where that cannot be captured; the stream is
        as it was.
        """
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.compute, mode)
        self._capturing = True
        queued = False
        try:
            queue()
            queued = True
        finally:
            self._capturing = False
            status, graph = self._cudart.cudaStreamEndCapture(self.compute)
            if int(status) or not queued:
                self._cudart.cudaGetLastError()  # libraries would take it for one of their own
                if graph:
                    self._cudart.cudaGraphDestroy(graph)
            self._release_unwanted()
        self._check("cudaStreamEndCapture", (status,))
        try:
            return CudaGraph(self, int(self.call("cudaGraphInstantiate", graph, 0)), uses)
        finally:
            self._cudart.cudaGraphDestroy(graph)

    def done(self, event: int) -> bool:
        status = self._cudart.cudaEventQuery(event)[0]
        if status == self._cudart.cudaError_t.cudaErrorNotReady:
            return False
        self._check("cudaEventQuery", (status,))
        return True

    def event_flags(self, timed: bool) -> int:
        return int(self._cudart.cudaEventDefault if timed else self._cudart.cudaEventDisableTiming)

    def settle(self) -> None:
        """Waits for all streams, before something is given up that queued work may still use. Raises nothing."""
        for stream in self._streams:
            self._release("cudaStreamSynchronize", stream)

    @property
    def graphs(self) -> int:
        """How many there are now."""
        return len(self._opened["cudaGraphExecDestroy"])

    def keep(self, owner: object, function: str, handle: int, uses: object = None) -> Callable[[], Any]:
        """`handle` is given back by `function`, one of _RELEASES, once `owner` is gone, at the latest by `close`.

        `uses`: what must stay until then; of memory, its kind and bytes. Returns what gives it back now.
        """
        finalizer = weakref.finalize(owner, self._give_back, function, handle, uses)
        finalizer.atexit = False  # the process ends with all that it has
        self._opened[function][handle] = finalizer
        return finalizer

    def close(self) -> None:
        """Waits for what is queued and gives back all that is left: graphs, events, memory, streams."""
        if self._closed:
            return
        self.settle()
        for function in _RELEASES:
            for finalizer in list(self._opened[function].values()):
                finalizer()
        _destroy_streams(self._cudart, self.index, self._streams)
        self._closed = True

    def _give_back(self, function: str, handle: int, uses: object) -> None:
        del self._opened[function][handle]
        if function != "cudaEventDestroy":
            self.settle()  # queued work may use it, and CUDA does not promise to wait
        self._release(function, handle)
        if isinstance(uses, _Taken):
            self.taken[uses.kind] -= uses.size_bytes

    def _release(self, function: str, handle: int) -> None:
        """Calls a function that frees something. Within a capture, where CUDA forbids that, it is put off."""
        if self._capturing:
            self._unwanted.append((function, handle))
            return
        self._cudart.cudaSetDevice(self.index)
        getattr(self._cudart, function)(handle)  # its status is about earlier work, and was raised there

    def _release_unwanted(self) -> None:
        unwanted, self._unwanted = self._unwanted, []
        for function, handle in unwanted:
            self._release(function, handle)

    def _check_present(self, otherwise: str) -> None:
        status, count = self._cudart.cudaGetDeviceCount()
        if int(status) or not count:
            why = self._explain(status) if int(status) else "none found"
            raise BackendError(
                f"device: got cuda:{self.index}, but no usable GPU here ({why}), expected one; {otherwise}"
            )
        if self.index >= count:
            last = f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0"
            raise BackendError(f"device: got cuda:{self.index}, expected {last}; change --device")

    def _kind(self, kind: str) -> Any:
        return getattr(self._cudart.cudaMemcpyKind, f"cudaMemcpy{kind}")

    def _check(self, function: str, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if status == self._cudart.cudaError_t.cudaErrorMemoryAllocation:
            why = f"{function}: got CUDA error 2 ({self._explain(status)}), expected room for {self._taken()} and more"
            raise BackendError(f"{why}; free memory of the GPU, or export a smaller plan")
        if int(status):
            raise BackendError(
                f"{function}: got CUDA error {int(status)} ({self._explain(status)}), expected success; start anew, "
                "and if it comes again, check driver and plan with videossm-doctor"
            )
        return values[0] if values else None

    def _explain(self, status: Any) -> str:
        _, text = self._cudart.cudaGetErrorString(status)
        return text.decode() if isinstance(text, bytes) else str(text)

    def _taken(self) -> str:
        return ", ".join(f"{size_bytes / 1e6:.0f} MB of {kind}" for kind, size_bytes in self.taken.items())


def _destroy_streams(cudart: Any, index: int, streams: list[int]) -> None:
    """Once what was queued is done; `streams` is empty afterwards."""
    cudart.cudaSetDevice(index)
    while streams:
        cudart.cudaStreamSynchronize(streams[-1])
        cudart.cudaStreamDestroy(streams.pop())


class CudaEvent:
    """A moment in a stream."""

    def __init__(self, device: CudaDevice, timed: bool = False) -> None:
        self._device = device
        self._event = int(device.call("cudaEventCreateWithFlags", device.event_flags(timed)))
        device.keep(self, "cudaEventDestroy", self._event)

    def record(self, stream: int) -> None:
        """It is reached once all that was queued on `stream` so far is done."""
        self._device.call("cudaEventRecord", self._event, stream)

    def hold(self, stream: int) -> None:
        """What is queued on `stream` from now on waits for it; the host does not."""
        self._device.call("cudaStreamWaitEvent", stream, self._event, 0)

    @property
    def reached(self) -> bool:
        return self._device.done(self._event)

    def wait(self) -> None:
        self._device.call("cudaEventSynchronize", self._event)

    def seconds_since(self, start: CudaEvent) -> float:
        """Both are reached and timed."""
        return float(self._device.call("cudaEventElapsedTime", start._event, self._event)) / 1000


class CudaGraph:
    """Work that was queued once and can be queued again by one call. `close()` gives it back."""

    def __init__(self, device: CudaDevice, graph: int, uses: object = None) -> None:
        self._device, self._graph = device, graph
        self.close = device.keep(self, "cudaGraphExecDestroy", graph, uses)

    def launch(self) -> None:
        self._device.call("cudaGraphLaunch", self._graph, self._device.compute)


class _Taken(NamedTuple):
    kind: str
    size_bytes: int


class Memory:
    """A block of device memory, or of pinned host memory. `kind`: buffers, activations or pinned."""

    def __init__(self, device: CudaDevice, kind: str, size_bytes: int) -> None:
        take, give_back = ("cudaMallocHost", "cudaFreeHost") if kind == _PINNED else ("cudaMalloc", "cudaFree")
        self.size_bytes = size_bytes
        self.address = int(device.call(take, size_bytes))
        device.taken[kind] += size_bytes
        device.keep(self, give_back, self.address, _Taken(kind, size_bytes))


class CudaStopwatch:
    """Adds up how long the compute stream takes for what is queued between `start` and `stop`."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._sum_s = 0.0
        self._running: tuple[CudaEvent, CudaEvent] | None = None
        self._pending: list[tuple[CudaEvent, CudaEvent]] = []
        self._spare: list[tuple[CudaEvent, CudaEvent]] = []

    def start(self) -> None:
        while self._pending and self._pending[0][1].reached:
            self._add()
        if self._running is None:  # else an exception cut the last measurement short
            self._running = self._spare.pop() if self._spare else self._pair()
        self._running[0].record(self._device.compute)

    def stop(self) -> None:
        assert self._running is not None, "start comes before stop"
        self._running[1].record(self._device.compute)
        self._pending.append(self._running)
        self._running = None

    def seconds(self) -> float:
        if self._pending:
            self._pending[-1][1].wait()
        while self._pending:
            self._add()
        return self._sum_s

    def _pair(self) -> tuple[CudaEvent, CudaEvent]:
        return CudaEvent(self._device, timed=True), CudaEvent(self._device, timed=True)

    def _add(self) -> None:
        start, end = self._pending.pop(0)
        self._sum_s += end.seconds_since(start)
        self._spare.append((start, end))
