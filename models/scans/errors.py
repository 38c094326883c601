"""What is refused before a scan is run."""

from __future__ import annotations

from videossm.models.family import ModelError


class CaptureError(ModelError):
    """A call that no scan operator can express, or a shape that it cannot have; the message is one line."""
