"""TensorRT's Python interface over the emulated CUDA. An "engine" is the ONNX graph itself and what it computes is
ONNX Runtime's, at the moment when the stream comes to it: nothing here pretends to be TensorRT's arithmetic.
"""

from __future__ import annotations

import enum
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from videossm.runtime.backends.session import session_options

DTYPES = {
    "tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(int32)": "INT32",
    "tensor(uint8)": "UINT8",
}  # fmt: skip


class EmulatedTensorRt:
    """Stands for the module `tensorrt`, or with `rtx` for `tensorrt_rtx`."""

    __version__ = "11.1.0"

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    DataType = enum.Enum("DataType", ["FLOAT", "HALF", "BF16", "INT64", "INT32", "UINT8"])
    TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
    EngineStat = enum.Enum("EngineStat", ["TOTAL_WEIGHTS_SIZE"])
    ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", ["USER_MANAGED"])

    def __init__(self, cuda: Any, rtx: bool) -> None:
        self.cuda = cuda
        self.options = SimpleNamespace(
            capturable=True, keeps_errors=False, stale_error=False, streamable=0, stripped=False, refuses=""
        )
        self.contexts: list[Any] = []
        self.caches: list[EmulatedCache] = []
        self.runtimes: list[Any] = []
        self.Runtime = lambda logger: EmulatedRuntime(self, logger)
        self.Refitter = EmulatedRefitter
        self.OnnxParserRefitter = EmulatedParserRefitter
        self.IExecutionContext = EmulatedRtxContext if rtx else EmulatedContext
        self.IRuntimeConfig = EmulatedRtxConfig if rtx else EmulatedConfig
        if rtx:
            self.IRuntimeCache = EmulatedCache

    def refused(self, call: str, logger: Any) -> bool:
        """Does the test want `call` to fail?"""
        if self.options.refuses == call:
            logger.log(self.ILogger.ERROR, f"[{call}] it failed,\n as the test wanted")
        return self.options.refuses == call


class EmulatedRuntime:
    def __init__(self, trt: EmulatedTensorRt, logger: Any) -> None:
        assert trt.cuda.current is not None, "a runtime is of the current device"
        self._trt, self._logger = trt, logger
        self.engine_host_code_allowed = False
        trt.runtimes.append(self)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        if self._trt.refused("deserialize_cuda_engine", self._logger):
            return None
        return EmulatedEngine(self._trt, self._logger, bytes(memoryview(serialized_engine)))


class EmulatedEngine:
    def __init__(self, trt: EmulatedTensorRt, logger: Any, model: bytes) -> None:
        self._trt, self._logger = trt, logger
        options = session_options("fp32", 1)
        self.digest = hashlib.sha256(model).hexdigest()[:8]
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._inputs = {tensor.name: tensor for tensor in self.session.get_inputs()}
        self._tensors = {**self._inputs, **{tensor.name: tensor for tensor in self.session.get_outputs()}}
        self.num_io_tensors = len(self._tensors)
        self.streamable_weights_size = trt.options.streamable
        self._budget = self.streamable_weights_size
        self.filled = not trt.options.stripped
        self._weights_bytes = len(model) + self.streamable_weights_size

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        self._budget = budget
        self._trt.cuda.library_bytes += budget

    @property
    def device_memory_size_v2(self) -> int:
        """Another one for each engine, and less of it with all the weights on the device."""
        return 1000 * len(self._tensors) + self.streamable_weights_size - self.weight_streaming_budget_v2

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT if name in self._inputs else self._trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType[DTYPES[self._tensors[name].type]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get_tensor_location(self, name: str) -> Any:
        return self._trt.TensorLocation.HOST if self._trt.options.refuses == name else self._trt.TensorLocation.DEVICE

    def get_engine_stat(self, stat: Any) -> int:
        return self._weights_bytes

    def create_runtime_config(self) -> Any:
        if self._trt.refused("create_runtime_config", self._logger):
            return None
        return self._trt.IRuntimeConfig(self._trt, self._logger)

    def create_execution_context(self, strategy: Any) -> Any:
        config = strategy if isinstance(strategy, EmulatedConfig) else None
        if self._trt.refused("create_execution_context", self._logger):
            return None
        if config is not None and self._trt.refused("a context with a cache", self._logger):
            return None
        strategy = strategy if config is None else config.strategy
        assert strategy is self._trt.ExecutionContextAllocationStrategy.USER_MANAGED, "activations share a block"
        return self._trt.IExecutionContext(self._trt, self._logger, self, config and config.cache)


class EmulatedConfig:
    def __init__(self, trt: EmulatedTensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self.strategy: Any = None
        self.cache: EmulatedCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class EmulatedRtxConfig(EmulatedConfig):
    def create_runtime_cache(self) -> Any:
        if self._trt.refused("create_runtime_cache", self._logger):
            return None
        return EmulatedCache(self._trt, self._logger)

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return not self._trt.refused("set_runtime_cache", self._logger)


class EmulatedCache:
    """Names of kernels, and which of them it was asked to have compiled."""

    def __init__(self, trt: EmulatedTensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self.kernels: list[str] = []
        self.compiled: list[str] = []
        trt.caches.append(self)

    def compile(self, kernel: str) -> None:
        if kernel not in self.kernels:
            self.kernels.append(kernel)
            self.compiled.append(kernel)

    def deserialize(self, blob: Any) -> bool:
        assert self._trt.cuda.current is not None, "it is checked against the current device"
        if self._trt.refused("deserialize", self._logger) or not bytes(blob).startswith(b"kernels"):
            return False
        self.kernels = bytes(blob).decode().split()[1:]
        return True

    def serialize(self) -> Any:
        assert self._trt.cuda.capturing is None, "a capture is no time for files"
        if self._trt.refused("serialize", self._logger):
            return None
        return memoryview(" ".join(["kernels", *self.kernels]).encode())


class EmulatedContext:
    """Some kernels of an engine are compiled with its context, others when that first runs."""

    def __init__(
        self, trt: EmulatedTensorRt, logger: Any, engine: EmulatedEngine, cache: EmulatedCache | None = None
    ) -> None:
        self._trt, self._logger, self.engine, self._cache = trt, logger, engine, cache
        if cache is not None:
            cache.compile(f"{engine.digest}-context")
        self.memory = (0, 0)
        self.addresses: dict[str, int] = {}
        self.runs = 0
        trt.contexts.append(self)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2 and memory % 16 == 0, "the block is too small"
        self.memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory % 256 == 0 and not self._trt.refused("set_tensor_address", self._logger)

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, engine = self._trt.cuda, self.engine
        assert cuda.current == 0, "it runs on the current device"
        assert engine.filled, "the engine has no weights"
        if self._trt.refused("execute_async_v3", self._logger):
            return False
        if self._trt.options.stale_error:
            self._trt.options.stale_error = False
            return False
        if cuda.capturing is not None and not self._trt.options.capturable:
            cuda.invalidated = True
            self._trt.options.stale_error = self._trt.options.keeps_errors
            self._trt.options.refuses, refuses = "execute_async_v3", self._trt.options.refuses
            self._trt.refused("execute_async_v3", self._logger)
            self._trt.options.refuses = refuses
            return False
        addresses, (memory, size) = dict(self.addresses), self.memory
        assert len(addresses) == engine.num_io_tensors, "every tensor needs an address"

        def run() -> None:
            scratch = cuda.view(memory, size)
            assert scratch is not None, "the activations' block is gone"
            scratch[...] = np.random.default_rng(0).integers(0, 256, size, np.uint8)
            self._trt.cuda.run_graph(engine.session, addresses)

        cuda.queue_work(stream_handle, "engine", run)
        self.runs += 1
        if self._cache is not None:
            self._cache.compile(f"{engine.digest}-run")
        return True


class EmulatedRtxContext(EmulatedContext):
    def is_stream_capturable(self, stream: int) -> bool:
        return self._trt.options.capturable


class EmulatedRefitter:
    def __init__(self, engine: EmulatedEngine, logger: Any) -> None:
        self.engine, self.logger = engine, logger
        self.file: str | None = None

    def refit_cuda_engine(self) -> bool:
        self.engine.filled = self.file is not None
        return self.engine.filled


class EmulatedParserRefitter:
    def __init__(self, refitter: EmulatedRefitter, logger: Any) -> None:
        self._refitter = refitter

    def refit_from_file(self, model: str) -> bool:
        if not Path(model).read_bytes():
            self._refitter.logger.log(EmulatedTensorRt.ILogger.ERROR, "no graph")
            return False
        self._refitter.file = model
        return True
