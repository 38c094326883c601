"""What the rollout asks of whatever runs the engines, and the way to one by name.

`Pass.run`, `Backend.copy`, `Buffer.write` and `Buffer.read_later` take effect in the order of the calls, and may
return before they are done; `Buffer.read` and `Transfer.wait` wait for all that came before them. A backend, its
engines and their buffers belong to one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from videossm.runtime.backends.tensorrt.module import MODULES
from videossm.runtime.errors import BackendError
from videossm.runtime.manifest import EngineSpec, Manifest

TENSORRT = tuple(MODULES)
# ONNX Runtime reads this when it is imported. Without it, it keeps a device's id and a database of telemetry in the
# user's cache folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# The operator of the lowering "contrib", and the ONNX Runtime that it came with.
CONTRIB_OPERATOR, CONTRIB_SINCE = "LinearAttention", "1.24"
# The operators of the lowering "native", and the variable of the environment that says where their library is.
NATIVE_DOMAIN, NATIVE_LIBRARY, NATIVE_VARIABLE = "videossm", "libvideossm_onnxruntime", "VIDEOSSM_SCANS"
PROVIDERS = ("cuda", "tensorrt", "nv-tensorrt-rtx")  # ONNX Runtime's, on a GPU


class Transfer(Protocol):
    """Values on their way to the host."""

    @property
    def ready(self) -> bool:
        """Whether `wait` returns at once."""

    def wait(self) -> NDArray[Any]:
        """The values, the same array every time, and the caller's to keep."""


class Buffer(Protocol):
    """A tensor in the device's memory, taken once; zeros at first."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def bindable(self) -> bool:
        """Whether an engine can be bound to it: to a whole one always, to a part if it is contiguous and aligned."""

    def part(self, start: int, stop: int) -> Buffer:
        """`[:, start:stop]` over the same memory."""

    def write(self, values: NDArray[Any]) -> None:
        """Overwrites it from the host; `values` may change once it returns."""

    def read(self) -> NDArray[Any]:
        """A copy on the host, after all that was queued before."""

    def read_later(self) -> Transfer:
        """Queues what `read` does. What changes the buffer afterwards waits until it is copied, but not the host."""


class Pass(Protocol):
    """One engine over fixed buffers. No output is an input: what is read stays as it was."""

    def run(self) -> None:
        """Reads the inputs' buffers, fills the outputs' buffers, allocates nothing; may return before it is done."""


class Stopwatch(Protocol):
    """Adds up the device's time for the work that is queued between `start` and `stop`."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def seconds(self) -> float:
        """The sum so far; waits for what is queued."""


class Engine(Protocol):
    """A loaded graph; several rollouts may share it."""

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Pass:
        """Every input and output by name; the buffers are bindable."""


@dataclass(frozen=True)
class DeviceUsage:
    """What a backend has taken of a GPU. None: its library takes that memory itself and does not say how much.

    `used_bytes`: of the whole GPU, now, by all programs.
    `pinned_bytes`: of the host, for copies to and from the device. `graphs`: CUDA graphs, each one pass.
    `notes`: what is slower than it could be, and why.
    """

    used_bytes: int
    weights_bytes: int | None
    activations_bytes: int | None
    buffers_bytes: int
    pinned_bytes: int
    graphs: int
    notes: tuple[str, ...]


class Backend(Protocol):
    """A device and what runs engines on it. Closed by `with` or `close`."""

    device: str  # cpu or cuda:N

    def load(self, name: str, spec: EngineSpec, file: Path) -> Engine:
        """Raises BackendError when the engine cannot run here or is not what the manifest says."""

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer: ...

    def copy(self, pairs: Iterable[tuple[Buffer, Buffer]]) -> None:
        """Copies each (source, target), of equal shapes; may return before it is done."""

    def stopwatch(self) -> Stopwatch: ...

    def usage(self) -> DeviceUsage | None:
        """None on a CPU, where all is resident memory of the process."""

    def close(self) -> None:
        """Waits for what is queued, and gives back all that was taken. Does nothing when it is called again."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def open_backend(
    manifest: Manifest, device: str | None = None, threads: int | None = None, provider: str | None = None
) -> Backend:
    """The backend that `manifest` names, for engines of its precision.

    `device`: `cpu` or `cuda:N`; None for the backend's own, which is the first GPU for TensorRT and else the CPU.
    `threads`: of a CPU; None for the backend's own number. `provider`: ONNX Runtime's on a GPU, `cuda` if None.

    Raises BackendError: not installed, without the device, or an option that it does not have.
    """
    name = manifest.backend
    if name == "onnxruntime":
        from videossm.runtime.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(device or "cpu", threads, manifest.precision, provider)
    for option, value in (("threads", threads), ("provider", provider)):
        if value is not None:
            raise BackendError(f"{option}: got {value} for {name}, expected none, it is ONNX Runtime's; leave it out")
    from videossm.runtime.backends.tensorrt.backend import TensorRtBackend

    compatible = manifest.target is not None and manifest.target.version_compatible
    host_code = compatible or manifest.lowering == "plugin"  # which engines bring along
    return TensorRtBackend(name, device or "cuda:0", host_code, manifest.runs_per_chunk())


def device_index(device: str) -> int | None:
    """`cpu` -> None, `cuda` -> 0, `cuda:N` -> N; anything else is a BackendError."""
    kind, _, index = device.partition(":")
    if device == "cpu":
        return None
    if kind == "cuda" and (index.isdecimal() or device == "cuda"):
        return int(index or 0)
    raise BackendError(f"device: got {device}, expected cpu or cuda:N; change --device")
