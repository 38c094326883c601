"""What a user can get wrong. The message is one line: `what: got X, expected Y; do Z`."""

from __future__ import annotations


class UserError(Exception):
    """Wrong input: a command line prints it as one line on stderr and exits with code 2."""


class PlanError(UserError):
    """A plan that is missing, damaged, of another version or inconsistent."""


class StateError(UserError):
    """A state file that is damaged, foreign, or of another plan."""


class PromptError(UserError):
    """A prompt that the plan's tokenizer cannot express, or too many or too few of them."""


class BackendError(UserError):
    """A backend or device that is unknown or not installed, or an engine that it cannot run."""


class SinkError(UserError):
    """An output that cannot be opened or written."""
