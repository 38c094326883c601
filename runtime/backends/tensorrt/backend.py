"""Runs TensorRT's engines: both modules, one stream, one block of activations, CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from videossm.runtime.backends import Backend, Buffer, DeviceUsage, device_index
from videossm.runtime.backends.cuda import CudaDevice, CudaStopwatch
from videossm.runtime.backends.cuda_memory import CudaBuffer, CudaMemory
from videossm.runtime.backends.tensorrt.engine import TensorRtEngine
from videossm.runtime.backends.tensorrt.engine_memory import EngineMemory
from videossm.runtime.backends.tensorrt.kernel_cache import KernelCache
from videossm.runtime.backends.tensorrt.module import Log, load_tensorrt
from videossm.runtime.errors import BackendError
from videossm.runtime.manifest import EngineSpec, TensorSpec

_OTHERWISE = "a plan for the CPU is made by videossm-export CHECKPOINT --backend onnxruntime"


class TensorRtBackend(Backend):
    """`name`: tensorrt or tensorrt-rtx. `host_code`: engines may bring code of their own, which runs here.

    `runs`: how often each engine runs in a chunk. Raises BackendError without a GPU, before TensorRT says the same in
    its own words.
    """

    def __init__(self, name: str, device: str, host_code: bool = False, runs: Mapping[str, int] | None = None) -> None:
        index = device_index(device)
        if index is None:
            raise BackendError(f"device: got {device} for a plan of {name}, expected cuda:N; {_OTHERWISE}")
        self.device = f"cuda:{index}"
        self._name = name
        self._cuda = CudaDevice(index, _OTHERWISE)
        self._trt = load_tensorrt(name)
        self._log = Log(self._trt)
        self._cuda.use()
        try:
            self._runtime = self._trt.Runtime(self._log.logger)
        except TypeError:  # what its Python binding makes of a null pointer
            self._cuda.close()
            raise self._log.fail(f"backend: {name} cannot start", "check the driver with videossm-doctor") from None
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._memory = CudaMemory(self._cuda)
        self._shared = EngineMemory(self._cuda, runs or {})
        self._kernels: dict[Path, KernelCache] = {}  # by the folder of the plan
        self._engines: list[TensorRtEngine] = []

    def load(self, name: str, spec: EngineSpec, file: Path) -> TensorRtEngine:
        self._cuda.use()
        # Mapped, not read: an engine may be larger than the host memory that is free.
        loaded = self._runtime.deserialize_cuda_engine(np.memmap(file, np.uint8, "r"))
        if loaded is None:
            what = f"{file.name}: {self._name} {self._trt.__version__} cannot load it"
            raise self._log.fail(what, "export the plan for this GPU and this version of TensorRT")
        if spec.weights is not None:
            self._refit(loaded, file, file.with_name(spec.weights))
        _check_tensors(self._trt, loaded, file.name, spec)
        kernels = self._kernels.setdefault(file.parent, KernelCache(self._trt, self._log, file.parent))
        engine = TensorRtEngine(self._trt, self._log, self._memory, self._shared, kernels, name, loaded)
        self._engines.append(engine)
        return engine

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> CudaBuffer:
        return self._memory.buffer(shape, np.dtype(dtype))

    def copy(self, pairs: Iterable[tuple[Buffer, Buffer]]) -> None:
        for source, target in pairs:
            assert isinstance(source, CudaBuffer) and isinstance(target, CudaBuffer), "buffers of this backend"
            target.copy_from(source)

    def stopwatch(self) -> CudaStopwatch:
        return CudaStopwatch(self._cuda)

    def close(self) -> None:
        """Waits for what is queued; then engines with their graphs, what was compiled for them, memory and streams."""
        for engine in self._engines:
            engine.close()
        for kernels in self._kernels.values():
            kernels.close()
        self._engines.clear()
        self._kernels.clear()
        self._shared.close()
        self._runtime = None
        self._memory.close()

    def usage(self) -> DeviceUsage:
        free_bytes, total_bytes = self._cuda.memory_bytes()
        return DeviceUsage(
            used_bytes=total_bytes - free_bytes,
            weights_bytes=sum(engine.weights_bytes for engine in self._engines),
            activations_bytes=self._cuda.taken["activations"],
            buffers_bytes=self._cuda.taken["buffers"],
            pinned_bytes=self._cuda.taken["pinned"],
            graphs=self._cuda.graphs,
            notes=(
                *(note for kernels in self._kernels.values() for note in kernels.notes),
                *(note for engine in self._engines for note in engine.notes),
            ),
        )

    def _refit(self, loaded: Any, file: Path, weights: Path) -> None:
        """The weights of an engine that was built without them."""
        try:
            refitter = self._trt.Refitter(loaded, self._log.logger)
            parser = self._trt.OnnxParserRefitter(refitter, self._log.logger)
            done = parser.refit_from_file(str(weights)) and refitter.refit_cuda_engine()
        except TypeError:  # a null pointer again: an engine that cannot be refitted
            done = False
        if not done:
            raise self._log.fail(f"{file.name}: cannot take the weights of {weights.name}", "export the plan again")


def _check_tensors(trt: Any, loaded: Any, file: str, spec: EngineSpec) -> None:
    """The engine must have exactly the tensors that the manifest lists, all of them on the device."""
    dtypes = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.BF16: "bfloat16",
        trt.DataType.INT64: "int64",
        trt.DataType.INT32: "int32",
        trt.DataType.UINT8: "uint8",
    }
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    for kind, mode, tensors in (
        ("inputs", trt.TensorIOMode.INPUT, spec.inputs),
        ("outputs", trt.TensorIOMode.OUTPUT, spec.outputs),
    ):
        listed = {tensor.name: _described(tensor) for tensor in tensors}
        found = {}
        for name in names:
            if loaded.get_tensor_mode(name) == mode:
                dtype = loaded.get_tensor_dtype(name)
                shape = "x".join(map(str, loaded.get_tensor_shape(name)))
                where = "" if loaded.get_tensor_location(name) == trt.TensorLocation.DEVICE else " on the host"
                found[name] = f"{dtypes.get(dtype, dtype)} {shape}{where}"
        for name in sorted(listed.keys() | found.keys()):
            if listed.get(name) != found.get(name):
                got, expected = found.get(name, "none"), listed.get(name, "none")
                raise BackendError(
                    f"{file}: {kind}: {name}: got {got}, expected {expected} by manifest.json; export the plan again"
                )


def _described(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} {'x'.join(map(str, tensor.shape))}"
