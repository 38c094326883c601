"""Is there room? Said before hours are spent, not after."""

from __future__ import annotations

from pathlib import Path

from videossm.runtime import Plan
from videossm.runtime.errors import UserError

# Of a plan's engines: the fp32 sessions of both sides of a comparison with their packed weights, and a graph at work.
SESSIONS = 4
STATES = 8  # of a rollout: the six that sensitivity starts from, and two at work; comparing takes as many
BASE_BYTES = 1 << 29  # interpreter, libraries, activations
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class MemoryShortageError(UserError):
    """Less memory than the work needs."""


def needed_bytes(plan: Plan) -> int:
    """Memory to calibrate an fp32 plan and to compare it with another."""
    manifest = plan.manifest
    state = sum(tensor.size_bytes for engine in manifest.engines.values() for tensor in engine.inputs)
    return BASE_BYTES + SESSIONS * sum(file.size_bytes for file in manifest.files.values()) + STATES * state


def check_memory(plan: Plan) -> None:
    """Raises MemoryShortageError where the system says that too little is free; where it says nothing, goes on."""
    needed, free = needed_bytes(plan), available_bytes()
    if free is not None and free < needed:
        raise MemoryShortageError(
            f"memory: got {free / 1e9:.1f} GB free, expected about {needed / 1e9:.1f} GB to calibrate and compare "
            f"{plan.name}; free some, or use a machine with more"
        )


def available_bytes() -> int | None:
    """What the system, and the container where there is one, could give without swapping; None where nothing says."""
    free = []
    try:
        lines = _MEMINFO.read_text().splitlines()
        free += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        usage = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        free.append(limit - int(usage["anon"]))  # the cache of files would give way
    except (OSError, ValueError, KeyError):  # no limit reads "max"
        pass
    return min(free) if free else None
