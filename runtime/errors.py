"""What a user can get wrong. The message is one line: `what: got X, expected Y; do Z`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 60  # characters of an input that an error repeats


def shown(value: object) -> str:
    """An input as an error repeats it: as Python writes it, so without control characters, and cut if it is long."""
    text = repr(value[: 2 * _SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}.."


class UserError(Exception):
    """Wrong input: a command line prints it as one line on stderr and exits with code 2."""


class PlanError(UserError):
    """A plan that is missing, damaged, of another version or inconsistent."""


class ManifestError(PlanError):
    """A manifest whose parts do not hold together: `field`, and `problem`, what it got and what was expected."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"manifest.json: {field}: {problem}; export the plan again")
        self.field, self.problem = field, problem


class StateError(UserError):
    """A state file that is damaged, foreign, or of another plan."""


class PromptError(UserError):
    """A prompt that the plan's tokenizer cannot express, or too many or too few of them."""


class BackendError(UserError):
    """A backend or device that is unknown or not installed, or an engine that it cannot run."""


class SinkError(UserError):
    """An output that cannot be opened or written."""


@dataclass(frozen=True)
class Problem:
    """One thing that a check found; as text the line that every error here has. `do` says how to mend it."""

    what: str
    got: str
    expected: str
    do: str

    def __str__(self) -> str:
        return " ".join(f"{self.what}: got {self.got}, expected {self.expected}; {self.do}".split())


class PreflightError(UserError):
    """All that stands in the way of a build or a run, found before time was spent on it: a line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def require_none(problems: Sequence[Problem]) -> None:
    """Raises PreflightError with all of `problems`, if there are any."""
    if problems:
        raise PreflightError(problems)
