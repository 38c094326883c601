"""TensorRT for the tests: the runtime finds the emulation where its Python module would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emulated_tensorrt import EmulatedTensorRt


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what would lie in the user's own."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def tensorrt(emulate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., EmulatedTensorRt]:
    """`tensorrt(order="late", rtx=False)`: from now on that is TensorRT, and its `cuda` CUDA."""

    def make(order: str = "late", rtx: bool = False) -> EmulatedTensorRt:
        trt = EmulatedTensorRt(emulate(order), rtx)
        monkeypatch.setattr("videossm.runtime.backends.tensorrt.backend.load_tensorrt", lambda name: trt)
        return trt

    return make
