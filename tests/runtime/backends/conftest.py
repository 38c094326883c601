"""A GPU for the tests: the runtime finds the emulation where CUDA would be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from emulated_cuda import EmulatedCuda


@pytest.fixture
def emulate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., EmulatedCuda]:
    """`emulate(order="late", devices=1)`: from now on that is CUDA."""

    def make(order: str = "late", devices: int = 1) -> EmulatedCuda:
        cuda = EmulatedCuda(order, devices)
        monkeypatch.setattr("videossm.runtime.backends.cuda.load_cudart", lambda otherwise: cuda)
        return cuda

    return make
