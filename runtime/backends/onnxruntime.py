"""ONNX Runtime: one session an engine, every tensor bound once to memory of ours.

On the CPU everything is done when a call returns. On a GPU its execution providers queue their work on our stream.
That side has not yet run on a GPU.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from videossm.runtime.backends import (
    CONTRIB_OPERATOR,
    CONTRIB_SINCE,
    NATIVE_DOMAIN,
    NATIVE_LIBRARY,
    NATIVE_VARIABLE,
    PROVIDERS,
    Backend,
    Buffer,
    DeviceUsage,
    device_index,
)
from videossm.runtime.backends.cuda import CudaDevice, CudaStopwatch
from videossm.runtime.backends.cuda_memory import CudaBuffer, CudaMemory
from videossm.runtime.backends.memory import HostBuffer, HostStopwatch
from videossm.runtime.backends.processors import Placement, place
from videossm.runtime.backends.session import session_options
from videossm.runtime.errors import BackendError
from videossm.runtime.manifest import EngineSpec, TensorSpec

try:
    import onnxruntime as ort
except ModuleNotFoundError as missing:
    if missing.name != "onnxruntime":
        raise
    raise BackendError("backend: got no onnxruntime, expected it installed; pip install videossm") from missing
if hasattr(ort, "disable_telemetry_events"):  # not in old ones; for an application that had imported it before
    ort.disable_telemetry_events()

_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
}
_ELEMENTS = {"tensor(bfloat16)": 16}  # ONNX element types of what NumPy has no dtype for
# What a GPU's execution providers are called here and there, and their options beside the device and the stream.
_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
    "tensorrt": ("TensorrtExecutionProvider", {}),
    "nv-tensorrt-rtx": ("NvTensorRTRTXExecutionProvider", {"has_user_compute_stream": "1"}),
}
_MOST_THREADS = 256  # of an engine, or as many as there are processors
_TIDIED = 64  # runs of a session, the last of which is waited for


class OnnxRuntimePass:
    """A session and a binding of all its tensors. `name`: of its engine."""

    def __init__(
        self, name: str, session: Any, binding: Any, buffers: list[Buffer], placement: Placement | None = None
    ) -> None:
        self._name = name
        self._session = session
        self._binding = binding
        self._placed = placement.held if placement else contextlib.nullcontext
        self._buffers = buffers  # the binding holds addresses only

    def run(self) -> None:
        """Raises BackendError: the memory is short, or the graph reads beyond a tensor, as for an unknown token."""
        with self._placed():
            self._run_session()

    def _run_session(self, *options: Any) -> None:
        try:
            self._session.run_with_iobinding(self._binding, *options)
        except Exception as error:  # onnxruntime has no common base class of its errors
            why = " ".join(str(error).split())
            raise BackendError(
                f"{self._name}: ONNX Runtime cannot run it ({why}); end other programs, or export the plan again"
            ) from error

    def close(self) -> None:
        """Gives back its part of the session; the binding refers to that without holding it."""
        self._binding = None
        self._session = None


class _RunOptions:
    """Options for the runs of one session, in turn: they say which runs the host waits for.

    With `nodes_on_host` it waits for all of them: ONNX Runtime uses the pinned memory of such nodes again as soon as a
    run returns. Otherwise it waits for one in _TIDIED: only then ONNX Runtime frees the pinned memory that kernels like
    Concat's take for their copies.
    """

    def __init__(self, nodes_on_host: bool) -> None:
        self._every = 1 if nodes_on_host else _TIDIED
        self._runs = 0
        self._waited, self._queued = ort.RunOptions(), ort.RunOptions()
        self._queued.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def next(self) -> Any:
        self._runs += 1
        return self._queued if self._runs % self._every else self._waited


class OnnxRuntimeCudaPass(OnnxRuntimePass):
    """A pass whose work is queued on the device's compute stream. `run_options`: of its session."""

    def __init__(
        self,
        name: str,
        session: Any,
        binding: Any,
        buffers: list[Buffer],
        memory: CudaMemory,
        outputs: Iterable[Buffer],
        run_options: _RunOptions,
    ) -> None:
        super().__init__(name, session, binding, buffers)
        self._memory, self._run_options = memory, run_options
        weakref.finalize(self, memory.device.settle).atexit = False  # the session may go next, and its memory with it
        self._written = {buffer.memory.address for buffer in outputs if isinstance(buffer, CudaBuffer)}

    def run(self) -> None:
        self._memory.before_writing(self._written)
        self._run_session(self._run_options.next())


class OnnxRuntimeEngine:
    """One InferenceSession. `memory`: of the GPU that it runs on, None for the CPU. `placement`: of a CPU's threads."""

    def __init__(
        self,
        session: Any,
        memory: CudaMemory | None = None,
        nodes_on_host: bool = False,
        placement: Placement | None = None,
        name: str = "engine",
    ) -> None:
        self._session, self._memory, self._placement, self._name = session, memory, placement, name
        self._run_options = _RunOptions(nodes_on_host)
        self._passes: weakref.WeakSet[OnnxRuntimePass] = weakref.WeakSet()
        tensors = [*session.get_inputs(), *session.get_outputs()]
        self._elements = {tensor.name: _ELEMENTS[tensor.type] for tensor in tensors if tensor.type in _ELEMENTS}

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> OnnxRuntimePass:
        binding = self._session.io_binding()
        for bind, buffers in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, buffer in buffers.items():
                assert isinstance(buffer, HostBuffer | CudaBuffer) and buffer.bindable, f"{name} must be bindable"
                element = self._elements.get(name, buffer.dtype.type)
                bind(name, *buffer.device, element, buffer.shape, buffer.address)
        bound = [*inputs.values(), *outputs.values()]
        made = OnnxRuntimePass(self._name, self._session, binding, bound, self._placement)
        if self._memory is not None:
            made = OnnxRuntimeCudaPass(
                self._name, self._session, binding, bound, self._memory, outputs.values(), self._run_options
            )
        self._passes.add(made)
        return made

    def close(self) -> None:
        """Gives back its passes, then the session."""
        for each in self._passes:
            each.close()
        self._session = None


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on the CPU or on one CUDA device. `precision` is the plan's, `provider` one of PROVIDERS."""

    def __init__(self, device: str, threads: int | None, precision: str = "fp32", provider: str | None = None) -> None:
        most = max(_MOST_THREADS, os.cpu_count() or 1)
        if threads is not None and not 1 <= threads <= most:
            raise BackendError(
                f"threads: got {threads}, expected 1 to {most}; leave it out for ONNX Runtime's own number"
            )
        index = device_index(device)
        self.device = "cpu" if index is None else f"cuda:{index}"
        self._threads, self._placement = threads, place(threads) if index is None else None
        self._precision = precision
        self._providers: list[Any] = ["CPUExecutionProvider"]
        self._cuda: CudaMemory | None = None
        self._notes: list[str] = []
        self._engines: weakref.WeakSet[OnnxRuntimeEngine] = weakref.WeakSet()
        if index is not None:
            self._cuda = self._open_gpu(index, provider or "cuda")
        elif provider is not None:
            raise BackendError(f"provider: got {provider} on the CPU, expected --device cuda:N with it; leave it out")

    def _open_gpu(self, index: int, provider: str) -> CudaMemory:
        """Puts the provider, and CUDA's for what it leaves out, before the CPU's. Raises BackendError without it."""
        if provider not in PROVIDERS:
            raise BackendError(f"provider: got {provider}, expected one of {', '.join(PROVIDERS)}; change --provider")
        available = ort.get_available_providers()
        wanted, _ = _PROVIDERS[provider]
        if wanted not in available:
            raise BackendError(
                f"device: got {self.device}, for which ONNX Runtime has no {wanted}, expected it among {available}; "
                "pip install 'videossm[gpu]' in place of onnxruntime, or use --device cpu"
            )
        device = CudaDevice(index, "use --device cpu")
        with contextlib.redirect_stdout(sys.stderr):  # where it says what it misses
            ort.preload_dlls()  # CUDA and cuDNN out of NVIDIA's packages, which the system's loader does not find
        for name, options in (_PROVIDERS["cuda"], _PROVIDERS[provider]):
            if name in available and name not in (entry[0] for entry in self._providers):
                on_ours = {"device_id": str(index), "user_compute_stream": str(device.compute)}
                self._providers.insert(0, (name, {**on_ours, **options}))
        return CudaMemory(device)

    def load(self, name: str, spec: EngineSpec, file: Path) -> OnnxRuntimeEngine:
        if self._cuda is None and any(tensor.dtype == "bfloat16" for tensor in (*spec.inputs, *spec.outputs)):
            raise BackendError(
                "device: got cpu for a plan in bf16, expected cuda:N, as ONNX Runtime has no such kernels on a CPU; "
                "change --device, or export with --precision fp16 or fp32"
            )
        options = session_options(self._precision, self._threads, self._placement)
        if self._cuda is not None:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # for _on_host
        try:
            # Its fallback tells stdout, which may be the video, and then computes on the CPU.
            session = ort.InferenceSession(str(file), options, providers=self._providers, enable_fallback=False)
        except Exception as error:  # onnxruntime has no common base class of its errors
            why = " ".join(str(error).split())
            if CONTRIB_OPERATOR in why:
                raise BackendError(
                    f"{file.name}: needs ONNX Runtime {CONTRIB_SINCE} or later, got {ort.__version__}; "
                    "upgrade, or export with --lowering standard"
                ) from error
            if f"{NATIVE_DOMAIN}:" in why and not os.environ.get(NATIVE_VARIABLE):
                raise BackendError(
                    f"{file.name}: has scans of the lowering native, expected {NATIVE_VARIABLE} to be the path of "
                    f"{NATIVE_LIBRARY}; build it with make native, or export with another --lowering"
                ) from error
            raise BackendError(f"{file.name}: ONNX Runtime {ort.__version__} cannot load it ({why})") from error
        if self._cuda is not None and self._providers[0][0] not in session.get_providers():
            raise BackendError(
                f"device: got {self.device}, where ONNX Runtime cannot start {self._providers[0][0]}, expected it to; "
                "check the driver, and that the libraries that it was built with are there: CUDA and cuDNN come by "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        for kind, tensors, actual in (
            ("input", spec.inputs, session.get_inputs()),
            ("output", spec.outputs, session.get_outputs()),
        ):
            _check_tensors(f"{file.name}: {kind}s", tensors, actual)
        on_host = _on_host(session) if self._cuda is not None else ""
        if on_host:
            self._notes.append(f"{name}: the host waits for each run, as some nodes run on the CPU ({on_host})")
        engine = OnnxRuntimeEngine(session, self._cuda, bool(on_host), self._placement, name)
        self._engines.add(engine)
        return engine

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> HostBuffer | CudaBuffer:
        if self._cuda is not None:
            return self._cuda.buffer(shape, np.dtype(dtype))
        try:
            return HostBuffer(np.zeros(shape, dtype))
        except (MemoryError, ValueError) as error:  # the second: more than addresses can count
            got = f"{list(shape)} of {np.dtype(dtype)}"
            raise BackendError(f"memory: got too little for {got} ({error}), expected more; free some") from error

    def copy(self, pairs: Iterable[tuple[Buffer, Buffer]]) -> None:
        for source, target in pairs:
            if isinstance(source, HostBuffer) and isinstance(target, HostBuffer):
                np.copyto(target.array, source.array)
            elif isinstance(source, CudaBuffer) and isinstance(target, CudaBuffer):
                target.copy_from(source)

    def stopwatch(self) -> HostStopwatch | CudaStopwatch:
        return CudaStopwatch(self._cuda.device) if self._cuda else HostStopwatch()

    def close(self) -> None:
        """Waits for what is queued; then sessions, memory and streams."""
        if self._cuda is not None:
            self._cuda.device.settle()
        for engine in list(self._engines):
            engine.close()
        if self._cuda is not None:
            self._cuda.close()

    def usage(self) -> DeviceUsage | None:
        """Weights and activations lie in ONNX Runtime's own arena."""
        if self._cuda is None:
            return None
        taken, (free_bytes, total_bytes) = self._cuda.device.taken, self._cuda.device.memory_bytes()
        return DeviceUsage(
            used_bytes=total_bytes - free_bytes,
            weights_bytes=None,
            activations_bytes=None,
            buffers_bytes=taken["buffers"],
            pinned_bytes=taken["pinned"],
            graphs=self._cuda.device.graphs,
            notes=tuple(self._notes),
        )


def _on_host(session: Any) -> str:
    """The operators that a session on a GPU leaves to the CPU, with how often each; empty if there is none."""
    parts = session.get_provider_graph_assignment_info()
    found = Counter(
        node.op_type for part in parts if part.ep_name == "CPUExecutionProvider" for node in part.get_nodes()
    )
    return ", ".join(f"{count} {operator}" for operator, count in sorted(found.items()))


def _check_tensors(where: str, expected: tuple[TensorSpec, ...], actual: Any) -> None:
    """The graph must have exactly the tensors that the manifest lists."""
    listed = {tensor.name: (tensor.dtype, tensor.shape) for tensor in expected}
    found = {tensor.name: (_TYPES.get(tensor.type, tensor.type), tuple(tensor.shape)) for tensor in actual}
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            got, want = found.get(name, "none"), listed.get(name, "none")
            raise BackendError(f"{where}: {name}: got {got}, expected {want} by manifest.json; export the plan again")
