"""ONNX Runtime: one session an engine, every tensor bound once to memory of ours.

On the CPU everything is done when a call returns. The CUDA side has not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from videossm.runtime.backends import Buffer, device_index
from videossm.runtime.backends.memory import CudaBuffer, HostBuffer, load_cudart
from videossm.runtime.errors import BackendError
from videossm.runtime.manifest import EngineSpec, TensorSpec

try:
    import onnxruntime as ort
except ModuleNotFoundError as missing:
    if missing.name != "onnxruntime":
        raise
    raise BackendError("backend: got no onnxruntime, expected it installed; pip install videossm") from missing

_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
}
_ELEMENTS = {"tensor(bfloat16)": 16}  # ONNX element types of what NumPy has no dtype for


class OnnxRuntimePass:
    """A session and a binding of all its tensors."""

    def __init__(self, session: Any, binding: Any, buffers: list[Buffer]) -> None:
        self._session = session
        self._binding = binding
        self._buffers = buffers  # the binding holds addresses only

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


class OnnxRuntimeEngine:
    """One InferenceSession."""

    def __init__(self, session: Any) -> None:
        self._session = session
        tensors = [*session.get_inputs(), *session.get_outputs()]
        self._elements = {tensor.name: _ELEMENTS[tensor.type] for tensor in tensors if tensor.type in _ELEMENTS}

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> OnnxRuntimePass:
        binding = self._session.io_binding()
        for bind, buffers in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, buffer in buffers.items():
                assert isinstance(buffer, HostBuffer | CudaBuffer) and buffer.contiguous, f"{name} must be contiguous"
                element = self._elements.get(name, buffer.dtype.type)
                bind(name, *buffer.device, element, buffer.shape, buffer.address)
        return OnnxRuntimePass(self._session, binding, [*inputs.values(), *outputs.values()])


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU or on one CUDA device. `precision` is the plan's."""

    def __init__(self, device: str, threads: int | None, precision: str = "fp32") -> None:
        if threads is not None and threads < 1:
            raise BackendError(
                f"threads: got {threads}, expected 1 or more; leave it out for ONNX Runtime's own number"
            )
        self._index = device_index(device)
        self._threads = threads
        self._precision = precision
        self._providers: list[Any] = ["CPUExecutionProvider"]
        if self._index is not None:
            available = ort.get_available_providers()
            if "CUDAExecutionProvider" not in available:
                raise BackendError(
                    f"device: got {device}, expected one of {available}; "
                    "pip install 'videossm[gpu]' in place of onnxruntime, or use --device cpu"
                )
            self._cudart = load_cudart()
            options = {"device_id": str(self._index), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
            self._providers.insert(0, ("CUDAExecutionProvider", options))

    def load(self, name: str, spec: EngineSpec, file: Path) -> OnnxRuntimeEngine:
        if self._index is None and any(tensor.dtype == "bfloat16" for tensor in (*spec.inputs, *spec.outputs)):
            raise BackendError(
                "device: got cpu for a plan in bf16, expected cuda:N, as ONNX Runtime has no such kernels on a CPU; "
                "change --device, or export with --precision fp16 or fp32"
            )
        try:
            session = ort.InferenceSession(str(file), self._options(), providers=self._providers)
        except Exception as error:  # onnxruntime has no common base class of its errors
            why = " ".join(str(error).split())
            raise BackendError(f"{file.name}: ONNX Runtime {ort.__version__} cannot load it ({why})") from error
        if self._index is not None and "CUDAExecutionProvider" not in session.get_providers():
            raise BackendError(
                f"device: got cuda:{self._index}, which ONNX Runtime cannot start; "
                "check the driver, and that CUDA and cuDNN are those that onnxruntime-gpu asks for"
            )
        for kind, tensors, actual in (
            ("input", spec.inputs, session.get_inputs()),
            ("output", spec.outputs, session.get_outputs()),
        ):
            _check_tensors(f"{file.name}: {kind}s", tensors, actual)
        return OnnxRuntimeEngine(session)

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> HostBuffer | CudaBuffer:
        if self._index is None:
            return HostBuffer(np.zeros(shape, dtype))
        return CudaBuffer(self._cudart, self._index, shape, np.dtype(dtype))

    def copy(self, pairs: Iterable[tuple[Buffer, Buffer]]) -> None:
        target: Buffer | None = None
        for source, target in pairs:
            if isinstance(source, HostBuffer) and isinstance(target, HostBuffer):
                np.copyto(target.array, source.array)
            elif isinstance(source, CudaBuffer) and isinstance(target, CudaBuffer):
                target.copy_from(source)
        if isinstance(target, CudaBuffer):
            target.synchronize()

    def _options(self) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads or 0  # 0: ONNX Runtime's own number
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        # Each engine has threads of its own and they run in turn: those that wait must not burn the cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        if self._precision == "fp8":
            # Fusions meant for int8 take fp8's pairs too, and make of them what no kernel can run.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options


def _check_tensors(where: str, expected: tuple[TensorSpec, ...], actual: Any) -> None:
    """The graph must have exactly the tensors that the manifest lists."""
    listed = {tensor.name: (tensor.dtype, tensor.shape) for tensor in expected}
    found = {tensor.name: (_TYPES.get(tensor.type, tensor.type), tuple(tensor.shape)) for tensor in actual}
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            got, want = found.get(name, "none"), listed.get(name, "none")
            raise BackendError(f"{where}: {name}: got {got}, expected {want} by manifest.json; export the plan again")
