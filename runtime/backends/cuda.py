"""One GPU through CUDA's runtime: a stream where all work queues, one for copies to the host, events, graphs.

A device, and all that lies on it, belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from videossm.runtime.errors import BackendError

_PINNED = "pinned"  # a kind of memory that lies on the host


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
        self._streams: list[int] = []  # that are not yet destroyed
        self._cudart = load_cudart(otherwise)
        self._check_present(otherwise)
        self._capturing = False
        self._unwanted: list[tuple[str, int]] = []
        self.taken = {"buffers": 0, "activations": 0, _PINNED: 0}  # bytes now, by kind
        self.graphs = 0  # now
        for _ in range(2):
            self._streams.append(int(self.call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking)))
        self.compute, self.copies = self._streams

    def use(self) -> None:
        """Makes it the calling thread's current device, for libraries that ask for that one."""
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

    def capture(self, queue: Callable[[], None]) -> CudaGraph:
        """What `queue` puts on the compute stream, as a graph. It is recorded, not executed.

        Raises BackendError where that cannot be captured; the stream is as it was.
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
            return CudaGraph(self, int(self.call("cudaGraphInstantiate", graph, 0)))
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
            self.release("cudaStreamSynchronize", stream)

    def release(self, function: str, handle: int) -> None:
        """Calls a function that frees something. Within a capture, where CUDA forbids that, it is put off."""
        if self._capturing:
            self._unwanted.append((function, handle))
            return
        self._cudart.cudaSetDevice(self.index)
        getattr(self._cudart, function)(handle)  # its status is that of earlier work, told elsewhere

    def _release_unwanted(self) -> None:
        unwanted, self._unwanted = self._unwanted, []
        for function, handle in unwanted:
            self.release(function, handle)

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
            raise BackendError(f"{why}; free memory of the GPU, or export with a smaller --height, --width or --batch")
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

    def __del__(self) -> None:
        self.settle()  # among garbage in a cycle it may come before graphs and memory, which then find no stream
        streams, self._streams = self._streams, []
        for stream in streams:
            self.release("cudaStreamDestroy", stream)


class CudaEvent:
    """A moment in a stream."""

    def __init__(self, device: CudaDevice, timed: bool = False) -> None:
        self._device = device
        self._event = int(device.call("cudaEventCreateWithFlags", device.event_flags(timed)))

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

    def __del__(self) -> None:
        if hasattr(self, "_event"):
            self._device.release("cudaEventDestroy", self._event)


class CudaGraph:
    """Work that was queued once and can be queued again by one call."""

    def __init__(self, device: CudaDevice, graph: int) -> None:
        self._device, self._graph = device, graph
        device.graphs += 1

    def launch(self) -> None:
        self._device.call("cudaGraphLaunch", self._graph, self._device.compute)

    def __del__(self) -> None:
        self._device.graphs -= 1
        self._device.settle()  # it may be running
        self._device.release("cudaGraphExecDestroy", self._graph)


class Memory:
    """A block of device memory, or of pinned host memory, for as long as it is referenced.

    `kind`: buffers, activations or pinned. Queued work ends before a block is freed: CUDA does not promise to wait.
    """

    def __init__(self, device: CudaDevice, kind: str, size_bytes: int) -> None:
        self._device, self._kind = device, kind
        self.size_bytes = size_bytes
        self.address = int(device.call("cudaMallocHost" if kind == _PINNED else "cudaMalloc", size_bytes))
        device.taken[kind] += size_bytes

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._device.taken[self._kind] -= self.size_bytes
            self._device.settle()
            self._device.release("cudaFreeHost" if self._kind == _PINNED else "cudaFree", self.address)


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
