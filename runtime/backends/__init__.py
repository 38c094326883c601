"""What the rollout asks of whatever runs the engines, and the way to one by name.

`Pass.run`, `Backend.copy` and `Buffer.write` take effect in the order of the calls, and may return before
they are done; `Buffer.read` waits for all that came before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from videossm.runtime.errors import BackendError
from videossm.runtime.manifest import EngineSpec

_PLANNED = ("tensorrt", "tensorrt-rtx")


class Buffer(Protocol):
    """A tensor in the device's memory, taken once; zeros at first."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def contiguous(self) -> bool: ...

    def part(self, start: int, stop: int) -> Buffer:
        """`[:, start:stop]` over the same memory."""

    def write(self, values: NDArray[Any]) -> None:
        """Overwrites it from the host; `values` may change once it returns."""

    def read(self) -> NDArray[Any]:
        """A copy on the host, after all that was queued before."""


class Pass(Protocol):
    """One engine over fixed buffers."""

    def run(self) -> None:
        """Reads the inputs' buffers, fills the outputs' buffers, allocates nothing; may return before it is done."""


class Engine(Protocol):
    """A loaded graph; several rollouts may share it."""

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Pass:
        """Every input and output by name; the buffers are contiguous."""


class Backend(Protocol):
    """A device and what runs engines on it."""

    def load(self, name: str, spec: EngineSpec, file: Path) -> Engine:
        """Raises BackendError when the engine cannot run here or is not what the manifest says."""

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer: ...

    def copy(self, pairs: Iterable[tuple[Buffer, Buffer]]) -> None:
        """Copies each (source, target), of equal shapes; may return before it is done."""


def open_backend(name: str, device: str = "cpu", threads: int | None = None, precision: str = "fp32") -> Backend:
    """The backend that a manifest names, on `cpu` or `cuda:N`, for engines of the manifest's precision.

    `threads` are those of a CPU; None for the backend's own number.

    Raises BackendError: unknown, not in this version, not installed, or without the device.
    """
    if name == "onnxruntime":
        from videossm.runtime.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(device, threads, precision)
    if name in _PLANNED:
        raise BackendError(
            f"backend: got a plan for {name}, which this version cannot run yet; "
            "export again with --backend onnxruntime"
        )
    raise BackendError(f"backend: got {name}, expected onnxruntime; export the plan again")


def device_index(device: str) -> int | None:
    """`cpu` -> None, `cuda` -> 0, `cuda:N` -> N; anything else is a BackendError."""
    kind, _, index = device.partition(":")
    if device == "cpu":
        return None
    if kind == "cuda" and (index.isdecimal() or device == "cuda"):
        return int(index or 0)
    raise BackendError(f"device: got {device}, expected cpu or cuda:N; change --device")
