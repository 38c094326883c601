"""A deployment's own modules as a backend, so that a plan's program can be rolled out in PyTorch as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from videossm.export.example import tensors_in, with_tensors
from videossm.models.family import Deployment, Engine
from videossm.runtime.backends import Backend, Buffer
from videossm.runtime.backends.memory import HostBuffer, HostStopwatch
from videossm.runtime.manifest import EngineSpec


class TorchPass:
    """A module over fixed buffers."""

    def __init__(self, engine: Engine, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        self._module = engine.module
        tensors = [torch.from_numpy(_array(inputs[name])) for name in engine.inputs]
        self._arguments = with_tensors(engine.example, iter(tensors))
        self._inputs = {_storage(tensor) for tensor in tensors}
        self._outputs = [torch.from_numpy(_array(outputs[name])) for name in engine.outputs]

    @torch.no_grad()
    def run(self) -> None:
        made = list(tensors_in(self._module(*self._arguments)))
        # A module may give an input back, which a target may be: all are read before any is written.
        given = [tensor.clone() if _storage(tensor) in self._inputs else tensor for tensor in made]
        for target, values in zip(self._outputs, given, strict=True):
            target.copy_(values)


class TorchEngine:
    """An engine of the deployment."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> TorchPass:
        return TorchPass(self._engine, inputs, outputs)


class TorchBackend(Backend):
    """Runs the engines of a plan as the modules that they were traced from, on the CPU."""

    device = "cpu"

    def __init__(self, deployment: Deployment) -> None:
        self._engines = {engine.name: engine for engine in deployment.engines}

    def load(self, name: str, spec: EngineSpec, file: Path) -> TorchEngine:
        return TorchEngine(self._engines[name])

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def copy(self, pairs: Iterable[tuple[Buffer, Buffer]]) -> None:
        for source, target in pairs:
            np.copyto(_array(target), _array(source))

    def stopwatch(self) -> HostStopwatch:
        return HostStopwatch()

    def usage(self) -> None:
        return None

    def close(self) -> None:
        pass


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _array(buffer: Buffer) -> Any:
    assert isinstance(buffer, HostBuffer), "buffers of this backend"
    return buffer.array
