"""The kernels that TensorRT-RTX compiled for a plan, kept in a file from one start of a process to the next."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from videossm.runtime.backends.tensorrt.module import Log
from videossm.runtime.manifest import MANIFEST_FILE


class KernelCache:
    """One runtime cache for all engines of a plan, and its file. Full TensorRT compiles in the build, and has none.

    TensorRT-RTX checks by itself whether a file is of its version, this GPU and this driver. Nothing that goes wrong
    here is an error: kernels are then compiled, as they are without a cache. `notes`: a line that says so, if any.
    """

    def __init__(self, trt: Any, log: Log, plan: Path) -> None:
        self._trt, self._log, self._plan = trt, log, plan
        self._in_use = hasattr(trt, "IRuntimeCache")
        self._cache: Any = None  # until the first configuration makes it
        self._configs: list[Any] = []  # as long as their contexts: nothing says that these can do without
        self._written = b""  # what the file holds
        self.notes: tuple[str, ...] = ()

    def context_for(self, engine: Any) -> Any:
        """An execution context that takes its kernels from here and leaves new ones here; None without a cache."""
        config = self.config_for(engine) if self._in_use else None
        if config is None:
            return None
        context = engine.create_execution_context(config)
        if context is None:
            self._give_up(f"no execution context with a cache: {self._log.reason()}")
        return context

    def config_for(self, engine: Any) -> Any:
        """A runtime configuration of TensorRT-RTX with the cache attached; None where that is not possible."""
        config = engine.create_runtime_config()
        if config is None:
            self._give_up(f"no runtime configuration: {self._log.reason()}")
            return None
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._cache is None:
            self._open(config)
        if not self._in_use:
            return None
        if not config.set_runtime_cache(self._cache):
            self._give_up(f"no runtime cache: {self._log.reason()}")
            return None
        self._configs.append(config)
        return config

    def save(self) -> None:
        """Writes the file, whole or not at all, if kernels came since. Never while a stream is captured."""
        if not self._in_use or self._cache is None:
            return
        serialized = self._cache.serialize()
        if serialized is None:
            self._give_up(f"no serialized cache: {self._log.reason()}")
            return
        kernels = bytes(memoryview(serialized))
        if kernels in (b"", self._written):
            return
        try:
            _write(self._file, kernels)
            self._written = kernels
        except OSError as error:
            self._give_up(f"cannot write {self._file}: {error.strerror or error}")

    def close(self) -> None:
        """Its contexts are gone by then."""
        self._configs.clear()
        self._cache, self._in_use = None, False

    def _open(self, config: Any) -> None:
        """Makes the cache, with what the file holds, if that is still of use."""
        try:
            self._file = cache_file(self._plan)
        except (OSError, RuntimeError) as error:  # the second: a user without a home
            self._give_up(f"no place for a cache: {error}")
            return
        self._cache = config.create_runtime_cache()
        if self._cache is None:
            self._give_up(f"no runtime cache: {self._log.reason()}")
            return
        try:
            kernels = self._file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            self._note("anew", f"cannot read {self._file}: {error.strerror or error}")
            return
        if self._cache.deserialize(kernels):
            self._written = kernels
        else:
            self._note("anew", f"{self._file} is refused: {self._log.reason()}")

    def _give_up(self, why: str) -> None:
        self._in_use = False
        self._note("at every start", why)

    def _note(self, when: str, why: str) -> None:
        self.notes = (f"kernels are compiled {when} ({why})",)


def cache_file(plan: Path) -> Path:
    """Where the kernels of the plan in this folder lie. Raises OSError, or RuntimeError where there is no home."""
    name = hashlib.sha256((plan / MANIFEST_FILE).read_bytes()).hexdigest()[:16]
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # the XDG specification: such a value does not count
        caches = Path.home() / ".cache"
    return caches / "videossm" / f"{name}.rtxcache"


def _write(file: Path, content: bytes) -> None:
    """By way of another file: other processes read and write this one, too."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with open(handle, "wb") as opened:
            opened.write(content)
        os.replace(temporary, file)
    except OSError:
        os.unlink(temporary)
        raise
