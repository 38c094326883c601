"""A file of kernels' timings, which makes TensorRT's next build of the same layers short."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from videossm.runtime.backends.tensorrt.module import Log
from videossm.runtime.errors import UserError

MEND = "name another file"


def read_timings(file: Path, config: Any, log: Log) -> None:
    """Gives `config` the timings in `file`, or an empty cache where it is not there."""
    if not config.set_timing_cache(_cache_in(file, config, log), False):
        raise log.fail(_what(file), MEND)


def write_timings(file: Path, config: Any, log: Log) -> None:
    """Writes the timings that `config` has, and those that another build put into `file` meanwhile."""
    cache = config.get_timing_cache()
    if file.exists() and not cache.combine(_cache_in(file, config, log), False):
        raise log.fail(_what(file), MEND)
    temporary = file.with_name(f".{file.name}-{os.getpid()}")  # other builds may write theirs
    try:
        temporary.write_bytes(memoryview(cache.serialize()))
        os.replace(temporary, file)  # a build that is killed leaves the older timings
    except OSError as error:
        raise UserError(f"{_what(file)} cannot be written ({error.strerror}); {MEND}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _cache_in(file: Path, config: Any, log: Log) -> Any:
    try:
        timings = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise UserError(f"{_what(file)} cannot be read ({error.strerror}); {MEND}") from error
    cache = config.create_timing_cache(timings)
    if cache is None:
        raise log.fail(_what(file), MEND)
    return cache


def _what(file: Path) -> str:
    return f"--timing-cache: {file}"
