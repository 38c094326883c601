"""Buffers in the host's memory, where everything is done when a call returns."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray


class HostBuffer:
    """A tensor in NumPy memory."""

    device = ("cpu", 0)

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def bindable(self) -> bool:
        return self.array.flags.c_contiguous

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    def part(self, start: int, stop: int) -> HostBuffer:
        return HostBuffer(self.array[:, start:stop])

    def write(self, values: NDArray[Any]) -> None:
        np.copyto(self.array, values, casting="same_kind")

    def read(self) -> NDArray[Any]:
        return self.array.copy()

    def read_later(self) -> HostTransfer:
        return HostTransfer(self.read())


class HostTransfer:
    """Values that have arrived."""

    ready = True

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def wait(self) -> NDArray[Any]:
        return self._values


class HostStopwatch:
    """The time that the calls take."""

    def __init__(self) -> None:
        self._sum_s = self._started_s = 0.0

    def start(self) -> None:
        self._started_s = perf_counter()

    def stop(self) -> None:
        self._sum_s += perf_counter() - self._started_s

    def seconds(self) -> float:
        return self._sum_s
