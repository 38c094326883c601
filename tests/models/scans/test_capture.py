"""What is captured, when and for whom, with libraries of two lines in the place of the real ones."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from videossm.models.scans.capture import CAPTURED, KERNELS, captured_scans
from videossm.models.scans.errors import CaptureError
from videossm.models.scans.selective_scan import selective_scan_reference

LIBRARIES = {name.partition(".")[0] for name in CAPTURED} | {KERNELS, "causal_conv1d_cuda"}
INTERFACE = "mamba_ssm.ops.selective_scan_interface"
MAMBA = """
import selective_scan_cuda
def selective_scan_fn(u, delta, A, B, C, D=None, z=None):
    return selective_scan_cuda.fwd
def mamba_inner_fn(xz):
    return "the library's"
"""
WITHOUT_KERNELS = MAMBA.replace("import selective_scan_cuda", "selective_scan_cuda = None")
CHUNK = """
import functools
def fast(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
@fast
def chunk_gated_delta_rule(q, k, v, g, beta, scale=None):
    return "the library's"
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for libraries, the first to be searched; those that are installed are not to be found."""

    def installed() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in LIBRARIES]

    before = {name: sys.modules.pop(name) for name in installed()}
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in installed():
        del sys.modules[name]
    sys.modules.update(before)


def install(folder: Path, module: str, source: str) -> None:
    path = folder.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True)
    for package in path.relative_to(folder).parents:
        (folder / package / "__init__.py").touch()
    path.write_text(source, encoding="utf-8")
    importlib.invalidate_caches()


def inputs() -> list[Tensor]:
    """u, delta, A, B, C."""
    noise = torch.Generator().manual_seed(0)
    u, delta, B, C = (torch.randn(shape, generator=noise) for shape in [(2, 6, 5)] * 2 + [(2, 4, 5)] * 2)
    return [u, delta.abs(), -torch.rand(6, 4, generator=noise), B, C]


def is_captured(function: Any) -> bool:
    """Whether it computes the scan; the library's own raises AttributeError."""
    try:
        y = function(*inputs())
    except AttributeError:
        return False
    expected, _ = selective_scan_reference(*inputs(), torch.zeros(2, 6, 4))
    return bool((y - expected).norm() <= 1e-5 * expected.norm())


def test_whoever_holds_the_function(libraries: Path) -> None:
    """A module that has it by name, another function's default, a partial: all from before the context."""
    install(libraries, INTERFACE, WITHOUT_KERNELS)
    install(libraries, "mamba_ssm.modules.layer", f"from {INTERFACE} import selective_scan_fn")
    function = importlib.import_module(INTERFACE).selective_scan_fn
    layer = importlib.import_module("mamba_ssm.modules.layer")
    holders = [function, layer.selective_scan_fn, functools.partial(function), lambda *x, scan=function: scan(*x)]
    for holder in holders:
        assert not is_captured(holder)
    signature = inspect.signature(function)
    with captured_scans():
        assert [is_captured(holder) for holder in holders] == [True] * 4
        assert inspect.signature(function) == signature
    assert [is_captured(holder) for holder in holders] == [False] * 4
    assert inspect.signature(function) == signature
    assert function.__defaults__ == (None, None)
    assert not function.__dict__


def test_nested_and_left_by_an_exception(libraries: Path) -> None:
    install(libraries, INTERFACE, WITHOUT_KERNELS)
    function, finders = importlib.import_module(INTERFACE).selective_scan_fn, list(sys.meta_path)
    with pytest.raises(ZeroDivisionError), captured_scans():
        with captured_scans():
            assert is_captured(function)
        assert is_captured(function), "the outer context goes on"
        _ = 1 / 0
    assert not is_captured(function)
    assert sys.meta_path == finders


def test_imported_inside(libraries: Path) -> None:
    """Without CUDA kernels, which it asks for: they are there while it is imported, and have nothing in them."""
    install(libraries, INTERFACE, MAMBA)
    with pytest.raises(ModuleNotFoundError, match=KERNELS):
        importlib.import_module(INTERFACE)
    with captured_scans():
        module = importlib.import_module(INTERFACE)
        assert is_captured(module.selective_scan_fn)
        assert KERNELS not in sys.modules, "others that ask for the kernels would believe that they are there"
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__ is not None and module.__spec__.loader is module.__loader__
    assert module.mamba_inner_fn(None) == "the library's"
    with pytest.raises(AttributeError, match=r"selective_scan_cuda.fwd: got mamba-ssm without CUDA kernels, expected"):
        module.selective_scan_fn(*inputs())


def test_installed_kernels_are_left_alone(libraries: Path) -> None:
    install(libraries, INTERFACE, MAMBA)
    (libraries / f"{KERNELS}.py").write_text("fwd = 'a kernel'", encoding="utf-8")
    with captured_scans():
        module = importlib.import_module(INTERFACE)
        assert is_captured(module.selective_scan_fn)
    assert module.selective_scan_fn(*inputs()) == "a kernel"


def test_a_decorated_function(libraries: Path) -> None:
    """As fla's are: what is changed is the function that was written."""
    install(libraries, "fla.ops.gated_delta_rule.chunk", CHUNK)
    function = importlib.import_module("fla.ops.gated_delta_rule.chunk").chunk_gated_delta_rule
    q, gate = torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3)
    with captured_scans():
        output, state = function(q, q, q, gate, gate)
        assert output.shape == q.shape and state is None
    assert function(q, q, q, gate, gate) == "the library's"


def test_a_function_of_another_kind(libraries: Path) -> None:
    install(libraries, INTERFACE, WITHOUT_KERNELS + "mamba_inner_fn = print")
    function, finders = importlib.import_module(INTERFACE).selective_scan_fn, list(sys.meta_path)
    message = rf"{INTERFACE}.mamba_inner_fn: got <built-in function print>, expected a Python function"
    with pytest.raises(CaptureError, match=message), captured_scans():
        pytest.fail("entered")
    assert not is_captured(function), "what was captured before it is restored"
    assert sys.meta_path == finders


def test_libraries_that_are_not_used_are_not_imported(libraries: Path) -> None:
    install(libraries, INTERFACE, MAMBA)
    modules, finders = set(sys.modules), list(sys.meta_path)
    with captured_scans():
        assert not {name for name in sys.modules.keys() - modules if name.partition(".")[0] in LIBRARIES}
    assert sys.meta_path == finders


@pytest.mark.usefixtures("libraries")
def test_libraries_that_are_absent() -> None:
    sys.modules.update(dict.fromkeys(LIBRARIES))  # None: not to be found
    with captured_scans():
        for name in CAPTURED:
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(name)
