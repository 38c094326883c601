"""ONNX Runtime sessions that can be looked into: inner tensors of an engine, or another engine on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from videossm.calib.graph import values_by_name
from videossm.runtime.backends import Backend, Buffer, Engine, Pass
from videossm.runtime.backends.memory import HostBuffer
from videossm.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from videossm.runtime.backends.processors import Placement
from videossm.runtime.backends.session import session_options
from videossm.runtime.errors import BackendError
from videossm.runtime.manifest import EngineSpec

Tensors = dict[str, NDArray[np.float32]]
# (engine, its tensors by name) after every run; the arrays are overwritten by the next one.
OnRun = Callable[[str, Tensors], None]


class TappedBackend(OnnxRuntimeBackend):
    """The CPU backend, whose engines also hand out inner tensors.

    `taps`: fp32 tensors of a graph, by engine; `files`: graphs to load in place of the plan's own, with the same
    inputs and outputs, in `precision`.
    """

    def __init__(
        self,
        taps: Mapping[str, Sequence[str]],
        on_run: OnRun,
        files: Mapping[str, Path] | None = None,
        precision: str = "fp32",
        threads: int | None = None,
    ) -> None:
        super().__init__("cpu", threads, precision)
        self._taps, self._on_run, self._files = taps, on_run, files or {}

    def load(self, name: str, spec: EngineSpec, file: Path) -> OnnxRuntimeEngine:
        file, taps = self._files.get(name, file), self._taps.get(name, ())
        if not taps:
            return super().load(name, spec, file)
        model = onnx.load(file, load_external_data=False)
        own_inputs = [tensor.name for tensor in spec.inputs if tensor.name in taps]
        tapped = _expose(model, [tensor for tensor in taps if tensor not in own_inputs])
        options = session_options(self._precision, self._threads, self._placement)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
        try:
            session = ort.InferenceSession(model.SerializeToString(), options, providers=self._providers)
        except Exception as error:  # onnxruntime has no common base class of its errors
            why = " ".join(str(error).split())
            raise BackendError(f"{file.name}: ONNX Runtime {ort.__version__} cannot load it ({why})") from error
        buffers = {tensor.name: HostBuffer(np.zeros(_shape(tensor), np.float32)) for tensor in tapped}
        return TappedEngine(session, name, own_inputs, buffers, self._on_run, self._placement)


class TappedEngine(OnnxRuntimeEngine):
    """An engine that fills `buffers` as well, and says so after every run, with those and its `own_inputs`."""

    def __init__(
        self,
        session: ort.InferenceSession,
        name: str,
        own_inputs: Sequence[str],
        buffers: dict[str, HostBuffer],
        on_run: OnRun,
        placement: Placement | None,
    ) -> None:
        super().__init__(session, placement=placement)
        self._name, self._own_inputs, self._buffers, self._on_run = name, own_inputs, buffers, on_run

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Pass:  # type: ignore[override]
        bound = super().bind(inputs, {**self._buffers, **outputs})
        tapped = {name: inputs[name] for name in self._own_inputs}
        arrays = _arrays(tapped | {name: outputs.get(name, buffer) for name, buffer in self._buffers.items()})
        return WatchedPass(bound, lambda: self._on_run(self._name, arrays))


class ShadowBackend:
    """`first`, with one more graph for some of its engines, run by `second` on the same inputs.

    `files`: those graphs, by engine. `on_run` is called with the inputs, the first graph's outputs and the second's.
    """

    def __init__(
        self,
        first: Backend,
        second: Backend,
        files: Mapping[str, Path],
        on_run: Callable[[str, Tensors, Tensors, Tensors], None],
    ) -> None:
        self._first, self._second, self._files, self._on_run = first, second, files, on_run
        self.device, self.buffer, self.copy = first.device, first.buffer, first.copy
        self.stopwatch, self.usage, self.close = first.stopwatch, first.usage, first.close

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def load(self, name: str, spec: EngineSpec, file: Path) -> Engine:
        engine = self._first.load(name, spec, file)
        if name not in self._files:
            return engine
        return ShadowedEngine(engine, self._second.load(name, spec, self._files[name]), name, self._on_run)


class ShadowedEngine:
    """Two engines with the same inputs and outputs; what goes on is the first one's output."""

    def __init__(
        self,
        engine: Engine,
        shadow: Engine,
        name: str,
        on_run: Callable[[str, Tensors, Tensors, Tensors], None],
    ) -> None:
        self._engine, self._shadow, self._name, self._on_run = engine, shadow, name, on_run
        self._copies: dict[str, HostBuffer] = {}  # of the outputs, one set for all passes: they run in turn

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Pass:
        for name, buffer in outputs.items():
            if name not in self._copies:
                self._copies[name] = HostBuffer(np.zeros(buffer.shape, buffer.dtype))
        first, second = self._engine.bind(inputs, outputs), self._shadow.bind(inputs, self._copies)

        def run_shadow() -> None:
            second.run()
            self._on_run(self._name, *(_arrays(buffers) for buffers in (inputs, outputs, self._copies)))

        return WatchedPass(first, run_shadow)


class WatchedPass:
    """A pass, and what to do after it."""

    def __init__(self, bound: Pass, after: Callable[[], None]) -> None:
        self._bound, self._after = bound, after

    def run(self) -> None:
        self._bound.run()
        self._after()


def _arrays(buffers: Mapping[str, Buffer]) -> Tensors:
    return {name: buffer.array for name, buffer in buffers.items() if isinstance(buffer, HostBuffer)}


def _expose(model: ModelProto, names: Sequence[str]) -> list[ValueInfoProto]:
    """Makes outputs of those of the tensors `names` that are none; returns the descriptions of all."""
    known = values_by_name(model)
    values = [known[name] for name in names]
    outputs = {value.name for value in model.graph.output}
    model.graph.output.extend(value for value in values if value.name not in outputs)
    return values


def _shape(value: ValueInfoProto) -> tuple[int, ...]:
    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT, f"{value.name}: observed tensors are fp32"
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
