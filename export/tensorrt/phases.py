"""How far a build is: TensorRT reports nested phases of known lengths, and asks after each step whether to go on."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import Any


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The phases that are under way. TensorRT reports from threads of its own; `fraction` may be read from another."""

    def __init__(self) -> None:
        self.cancelled = Event()
        self._phases: dict[str, _Phase] = {}
        self._fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._phases[name] = _Phase(parent, steps)

    def finish(self, name: str) -> None:
        self._phases.pop(name, None)

    def step(self, name: str, index: int) -> bool:
        """Step `index` of a phase is done. False ends the build: it was cancelled."""
        if name in self._phases:
            self._phases[name].done = index + 1
        return not self.cancelled.is_set()

    @property
    def fraction(self) -> float:
        """Of the work that is done, 0 to 1; never falls, though a phase's length is a guess of TensorRT's."""
        phases = list(self._phases.items())  # a copy: they come and go meanwhile
        roots = [self._of(name, phase, phases) for name, phase in phases if phase.parent is None]
        self._fraction = max([self._fraction, *roots])
        return self._fraction

    def _of(self, name: str, phase: _Phase, phases: list[tuple[str, _Phase]]) -> float:
        inner = [self._of(child, of_child, phases) for child, of_child in phases if of_child.parent == name]
        return min(1.0, (phase.done + max(inner, default=0.0)) / max(phase.steps, 1))


def monitor_of(trt: Any, phases: Phases) -> Any:
    """What a builder's config takes as `progress_monitor`; it must live as long as the config."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

    return Monitor()
