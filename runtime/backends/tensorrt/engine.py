"""One TensorRT engine with its execution context, and a pass of it, which becomes a CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from videossm.runtime.backends import Buffer
from videossm.runtime.backends.cuda import CudaGraph, Memory
from videossm.runtime.backends.cuda_memory import CudaBuffer, CudaMemory
from videossm.runtime.backends.tensorrt.engine_memory import EngineMemory
from videossm.runtime.backends.tensorrt.kernel_cache import KernelCache
from videossm.runtime.backends.tensorrt.module import Log
from videossm.runtime.errors import BackendError


class TensorRtEngine:
    """An engine and its one execution context: addresses are set before each run, so any number of passes share it.

    `notes`: what does not go as fast as it could.
    """

    def __init__(
        self, trt: Any, log: Log, memory: CudaMemory, shared: EngineMemory, kernels: KernelCache, name: str, loaded: Any
    ) -> None:
        self._trt, self._log, self._memory, self._shared, self._loaded = trt, log, memory, shared, loaded
        self._kernels, self._kernels_kept = kernels, False
        self._device = memory.device
        self.name = name
        self.notes: list[str] = []
        self._context: Any = None
        self._block: Memory | None = None
        self._graphs_allowed = True
        # A capture failed, and nothing ran since: TensorRT has a CUDA runtime of its own, whose last error nobody but
        # itself can clear. It then takes that error for one of its next run, which is clean when it is tried again.
        self._after_capture = False
        self._passes: weakref.WeakSet[TensorRtPass] = weakref.WeakSet()
        # TensorRT does not wait for its own queued work when a context is destroyed.
        weakref.finalize(self, self._device.settle).atexit = False
        shared.add(self)

    @property
    def activations_bytes(self) -> int:
        """Needed while it runs; more of them if its weights are streamed."""
        return int(self._loaded.device_memory_size_v2)

    @property
    def weights_bytes(self) -> int:
        """On the device."""
        streamed = self._loaded.streamable_weights_size - self._loaded.weight_streaming_budget_v2
        total = self._loaded.get_engine_stat(self._trt.EngineStat.TOTAL_WEIGHTS_SIZE)
        return max(0, total - (streamed if self._loaded.streamable_weights_size else 0))

    def open(self, weights_bytes: int) -> None:
        """Makes its context; of weights that can be streamed it keeps `weights_bytes`. Raises BackendError."""
        mend = "free memory of the GPU, or export a smaller plan"
        self._device.use()
        if self._loaded.streamable_weights_size:
            budget = min(weights_bytes, self._loaded.streamable_weights_size)
            self._loaded.weight_streaming_budget_v2 = budget
            if self._loaded.weight_streaming_budget_v2 != budget:
                raise self._log.fail(f"{self.name}: cannot keep {budget / 1e6:.0f} MB of weights on the GPU", mend)
        self._context = self._kernels.context_for(self._loaded)
        if self._context is None:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._context = self._loaded.create_execution_context(strategy)
        if self._context is None:
            raise self._log.fail(f"{self.name}: no execution context", mend)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> TensorRtPass:
        if self._context is None:
            self._shared.open_engines()
        bound = TensorRtPass(self._memory, self, *(_on_device(buffers) for buffers in (inputs, outputs)))
        self._passes.add(bound)
        return bound

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        """Queues one run on the compute stream. Raises BackendError."""
        self._device.use()
        if self._block is None:
            self._block = self._shared.activations()
            self._context.set_device_memory(self._block.address, self._block.size_bytes)
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._log.fail(f"{self.name}: {name}: no such address", "export the plan again")
        queued = self._context.execute_async_v3(self._device.compute)
        if not queued and self._after_capture:
            queued = self._context.execute_async_v3(self._device.compute)
        self._after_capture = False
        if not queued:
            raise self._log.fail(f"{self.name}: cannot run", "check the plan's GPU and driver with videossm-doctor")

    def keep_kernels(self) -> None:
        """Saves what was compiled for it, once. After a first run all of it is there; not within a capture."""
        if not self._kernels_kept:
            self._kernels_kept = True
            self._device.use()
            self._kernels.save()

    def capture(self, addresses: Mapping[str, int]) -> CudaGraph | None:
        """One run as a graph; None where that is not possible, which is noted, and then never tried again."""
        if not self._graphs_allowed:
            return None
        # TensorRT itself has no such question; there the capture fails.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._device.compute):
            self._give_up("its execution context cannot be captured")
            return None
        try:
            return self._device.capture(lambda: self.enqueue(addresses), uses=(self._context, self._block))
        except BackendError as error:
            self._give_up(str(error))
            self._after_capture = True
            return None

    def _give_up(self, why: str) -> None:
        self._graphs_allowed = False
        self.notes.append(f"{self.name}: runs without CUDA graphs ({why})")

    def close(self) -> None:
        """Gives back graphs, context and engine, in this order."""
        self._device.settle()
        for bound in self._passes:
            bound.close()
        self._context = self._block = self._loaded = None


class TensorRtPass:
    """An engine over fixed buffers. Its first run is an ordinary one, in which TensorRT does what it does only once;
    the second is captured and launched as a CUDA graph, and so are all that follow.

    A capture executes nothing and a pass writes nothing that another run of it would read, so neither the warm-up nor
    the capture moves the rollout's state: there is nothing to save before them and to restore after. The two sides of a
    pair of buffers are two passes, hence two graphs; swapping them changes no address.
    """

    def __init__(
        self,
        memory: CudaMemory,
        engine: TensorRtEngine,
        inputs: dict[str, CudaBuffer],
        outputs: dict[str, CudaBuffer],
    ) -> None:
        self._graph: CudaGraph | None = None
        self._memory, self._engine = memory, engine
        self._buffers = {**inputs, **outputs}  # the context and the graph hold addresses only
        self._addresses = {name: buffer.address for name, buffer in self._buffers.items()}
        self._written = {buffer.memory.address for buffer in outputs.values()}
        self._warm = False

    def run(self) -> None:
        self._memory.before_writing(self._written)
        if self._warm and self._graph is None:
            self._graph = self._engine.capture(self._addresses)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._engine.enqueue(self._addresses)
            self._engine.keep_kernels()
        self._warm = True

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()


def _on_device(buffers: Mapping[str, Buffer]) -> dict[str, CudaBuffer]:
    found = {}
    for name, buffer in buffers.items():
        assert isinstance(buffer, CudaBuffer) and buffer.bindable, f"{name} must be bindable"
        found[name] = buffer
    return found
