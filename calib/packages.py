"""Packages that the runtime does without, and these command lines do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from videossm.runtime.errors import UserError


@contextmanager
def export_packages(command: str) -> Iterator[None]:
    """Around imports: one that fails is a UserError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{command}: got no {error.name}, expected it installed; pip install 'videossm[export]'"
        ) from None
