"""Calls of the scans in mamba-ssm, causal-conv1d and flash-linear-attention, captured as the operators of this project.

    with captured_scans():
        program = torch.onnx.export(model, ...)    # or model(...): without a GPU

Inside, the functions of `CAPTURED` compute what `videossm.models.scans.mamba` and `.flash_linear_attention` say, with
the scan operators, on any device; afterwards they are what they were.

A function is changed in place: it gets the code of a short one that calls ours. So it does not matter who holds it and
under which name: a module that imported it by name, a layer that keeps it as an attribute, a partial. Replacing the
names, in all of `sys.modules`, would miss the last two and leave behind what was imported meanwhile. Of a decorated
function the innermost is changed.

What is not imported yet is changed as soon as it is; no library is imported for it. mamba-ssm without its CUDA kernels
can be imported inside only: it asks for a module `selective_scan_cuda`, and while it does there is an empty one.

The change is seen by all threads. Contexts may be nested.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, FunctionType, ModuleType
from typing import Any

from videossm.models.scans.errors import CaptureError

KERNELS = "selective_scan_cuda"  # the extension that mamba-ssm is built with where there is a CUDA compiler


# The code of these runs in the place of a library's, with that library's globals: they import what they call.
def _selective_scan_fn(*args: Any, **kwargs: Any) -> Any:
    from videossm.models.scans.mamba import selective_scan_fn

    return selective_scan_fn(*args, **kwargs)


def _mamba_inner_fn(*args: Any, **kwargs: Any) -> Any:
    from videossm.models.scans.mamba import mamba_inner_fn

    return mamba_inner_fn(*args, **kwargs)


def _causal_conv1d_fn(*args: Any, **kwargs: Any) -> Any:
    from videossm.models.scans.mamba import causal_conv1d_fn

    return causal_conv1d_fn(*args, **kwargs)


def _chunk_gated_delta_rule(*args: Any, **kwargs: Any) -> Any:
    from videossm.models.scans.flash_linear_attention import chunk_gated_delta_rule

    return chunk_gated_delta_rule(*args, **kwargs)


def _fused_recurrent_gated_delta_rule(*args: Any, **kwargs: Any) -> Any:
    from videossm.models.scans.flash_linear_attention import fused_recurrent_gated_delta_rule

    return fused_recurrent_gated_delta_rule(*args, **kwargs)


# The module that defines them -> its functions -> whose code they get.
CAPTURED: dict[str, dict[str, Callable[..., Any]]] = {
    "mamba_ssm.ops.selective_scan_interface": {
        "selective_scan_fn": _selective_scan_fn,
        "mamba_inner_fn": _mamba_inner_fn,
    },
    "causal_conv1d.causal_conv1d_interface": {"causal_conv1d_fn": _causal_conv1d_fn},
    "fla.ops.gated_delta_rule.chunk": {"chunk_gated_delta_rule": _chunk_gated_delta_rule},
    "fla.ops.gated_delta_rule.fused_recurrent": {"fused_recurrent_gated_delta_rule": _fused_recurrent_gated_delta_rule},
}


@contextlib.contextmanager
def captured_scans() -> Iterator[None]:
    """Captures the functions of `CAPTURED` until it is left, by an exception too.

    Raises CaptureError where one of them is no Python function: a version of its library that is not known.
    """
    with contextlib.ExitStack() as restore:

        def capture(module: ModuleType) -> None:
            for name, replacement in CAPTURED[module.__name__].items():
                if hasattr(module, name):
                    restore.callback(_change(module, name, replacement))

        for name in CAPTURED:
            if module := sys.modules.get(name):
                capture(module)
        finder = _Finder(capture)
        sys.meta_path.insert(0, finder)
        restore.callback(sys.meta_path.remove, finder)
        yield


def _change(module: ModuleType, name: str, replacement: Callable[..., Any]) -> Callable[[], None]:
    """Gives the function the replacement's code, and returns what undoes it."""
    function = inspect.unwrap(getattr(module, name))
    if not isinstance(function, FunctionType) or function.__closure__:
        raise CaptureError(
            f"{module.__name__}.{name}: got {function!r}, expected a Python function without a closure; install a "
            "version of the library that has one"
        )
    before = function.__code__, function.__defaults__, function.__kwdefaults__, function.__dict__

    def change(
        code: CodeType,
        defaults: tuple[Any, ...] | None,
        keyword_defaults: dict[str, Any] | None,
        attributes: dict[str, Any],
    ) -> None:
        function.__code__, function.__defaults__, function.__kwdefaults__ = code, defaults, keyword_defaults
        function.__dict__ = attributes

    # Callers read the signature: transformers passes on only the arguments that it has.
    signature = inspect.signature(function)
    change(replacement.__code__, None, None, {**function.__dict__, "__signature__": signature})
    return lambda: change(*before)


class _Finder(MetaPathFinder):
    """Finds the modules of `CAPTURED` where the other finders do, and calls `capture` with each once it has run."""

    def __init__(self, capture: Callable[[ModuleType], None]) -> None:
        self._capture = capture

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in CAPTURED:
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]  # contexts nest
        found = (finder.find_spec(name, path, target) for finder in later)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._capture)
        return spec


class _Loader(Loader):
    """Loads as `loader` does, and puts that one back into the module."""

    def __init__(self, loader: Loader, capture: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._capture = capture

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        with _some_kernels():
            self._loader.exec_module(module)
        self._capture(module)


@contextlib.contextmanager
def _some_kernels() -> Iterator[None]:
    """mamba-ssm's extension can be imported: where it is not installed, without anything in it."""
    if KERNELS in sys.modules or importlib.util.find_spec(KERNELS) is not None:
        yield
        return
    empty = ModuleType(KERNELS)
    empty.__getattr__ = _no_kernel  # type: ignore[method-assign]
    sys.modules[KERNELS] = empty
    try:
        yield
    finally:
        del sys.modules[KERNELS]


def _no_kernel(name: str) -> Any:
    raise AttributeError(
        f"{KERNELS}.{name}: got mamba-ssm without CUDA kernels, expected a call inside captured_scans(); move it there"
    )
