"""The device memory that the engines of one backend share: activations, and what is left for streamed weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from videossm.runtime.backends.cuda import CudaDevice, Memory

if TYPE_CHECKING:
    from videossm.runtime.backends.tensorrt.engine import TensorRtEngine

_SMALLEST = 256  # bytes; an engine may need none, and an address is asked for
_SPARE = 0.05  # of the device's memory, left free beside weights: what TensorRT and the driver take on their own


class EngineMemory:
    """Engines are added when they are loaded, and opened together when the first of them is bound.

    By then the rollout's buffers are taken, so all that is still free can hold weights. TensorRT's own automatic
    budget is not for several engines: each takes what it finds. (Its Python binding also cuts it to 32 bits.)

    Activations are one block, as engines run in turn, on one stream. It is sized to the largest of the engines opened
    by then. An engine keeps the block that it was given, as captured graphs have its address; a later, larger engine
    makes another block for those that come after it.

    `runs`: how often each engine runs in a chunk.
    """

    def __init__(self, device: CudaDevice, runs: Mapping[str, int]) -> None:
        self._device, self._runs = device, runs
        self._waiting: list[TensorRtEngine] = []
        self._needed_bytes = _SMALLEST
        self._block: Memory | None = None

    def add(self, engine: TensorRtEngine) -> None:
        self._waiting.append(engine)

    def open_engines(self) -> None:
        """Opens the engines that wait; of those that stream their weights the one that runs most gets memory first."""
        waiting, self._waiting = self._waiting, []
        activations_bytes = max((engine.activations_bytes for engine in waiting), default=0)
        for engine in sorted(waiting, key=lambda engine: -self._runs.get(engine.name, 0)):
            free_bytes, total_bytes = self._device.memory_bytes()
            engine.open(max(0, free_bytes - activations_bytes - int(_SPARE * total_bytes)))
            self._needed_bytes = max(self._needed_bytes, engine.activations_bytes)

    def activations(self) -> Memory:
        """At least as large as all that was needed so far."""
        if self._block is None or self._block.size_bytes < self._needed_bytes:
            self._block = Memory(self._device, "activations", self._needed_bytes)
        return self._block

    def close(self) -> None:
        self._waiting.clear()
        self._block = None
