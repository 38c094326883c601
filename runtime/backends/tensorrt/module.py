"""The two Python modules behind one face: `tensorrt` and TensorRT-RTX's, which has another name and leaves things out.

Differences that this project meets, TensorRT 11.1 against TensorRT-RTX 1.7:

| | TensorRT | TensorRT-RTX |
|---|---|---|
| builds for | the GPU that it finds | `compute_capability`, with or without a GPU |
| plugins | yes, also inside an engine | none: a plugin's layer ends the process |
| captures an engine as a CUDA graph | always | built with `REQUIRE_USER_ALLOCATION`; tells by `is_stream_capturable` |
| timing cache, tactics | yes | deprecated: kernels are compiled where the engine is loaded |
| cache of compiled kernels | none | `IRuntimeCache`, attached by the `IRuntimeConfig` of an execution context |
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from videossm.runtime.errors import BackendError, Problem

# The modules that may hold each of them, and the extra that installs it.
MODULES = {"tensorrt": (("tensorrt",), "trt"), "tensorrt-rtx": (("tensorrt_rtx", "tensorrt_rtx_bindings"), "rtx")}


def load_tensorrt(backend: str) -> ModuleType:
    """The module of `tensorrt` or `tensorrt-rtx`. Raises BackendError where it is not installed or cannot start."""
    found = find_tensorrt(backend)
    if isinstance(found, Problem):
        raise BackendError(str(found))
    return found


def find_tensorrt(backend: str) -> ModuleType | Problem:
    """The module of `tensorrt` or `tensorrt-rtx`, or what keeps it from starting."""
    names, extra = MODULES[backend]
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                return Problem(f"backend {backend}", f"no {error.name} beside it", "one", "install it")
        except (ImportError, OSError, RuntimeError) as error:  # a library that it needs, or its own installer's stub
            return Problem(f"backend {backend}", f"one that cannot start ({error})", "one that does", "mend it")
    return Problem(f"backend {backend}", "none installed", "it", f"pip install 'videossm[{extra}]'")


@cache
def _logger_of(trt: Any) -> tuple[Any, list[str]]:
    """The module's one logger, as TensorRT keeps to the first that it is given, and the errors that come to it."""
    errors: list[str] = []
    worst = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in worst:
                errors.append(" ".join(message.split()))

    return Logger(), errors


class Log:
    """TensorRT's messages. It reports what fails to a logger and returns None or False: `fail` gives the reason."""

    def __init__(self, trt: Any) -> None:
        self.logger, self._errors = _logger_of(trt)
        self._errors.clear()  # of what another one did not ask for

    def fail(self, what: str, mend: str) -> BackendError:
        """An exception with what was logged since the last one, the first message first."""
        return BackendError(f"{what}: {self.reason()}; {mend}")

    def reason(self) -> str:
        """What was logged since the last time, and is not told again."""
        messages, self._errors[:] = list(dict.fromkeys(self._errors)), []
        return "; ".join(messages) or "TensorRT said nothing"
