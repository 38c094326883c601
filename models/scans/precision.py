"""Scans cumulate: they run in fp32 also where autocast is on."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast off on `like`'s device. Nothing is entered where it is off, so that an exported graph has no region."""
    device = like.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
