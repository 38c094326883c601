"""Runs plans: `Plan.open(path)`, `Rollout(plan, prompt)`, and chunks of frames without end."""

from typing import Any

from videossm.runtime.chunk import Chunk
from videossm.runtime.errors import BackendError, PlanError, PromptError, SinkError, StateError, UserError
from videossm.runtime.loaded_plan import LoadedPlan
from videossm.runtime.plan import Plan
from videossm.runtime.rollout import Rollout
from videossm.runtime.state import Snapshot

__all__ = [
    "BackendError",
    "Chunk",
    "LoadedPlan",
    "Plan",
    "PlanError",
    "PromptError",
    "Rollout",
    "SinkError",
    "Snapshot",
    "StateError",
    "UserError",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # looked up in the installation, which takes some milliseconds
        from importlib.metadata import version

        return version("videossm")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
