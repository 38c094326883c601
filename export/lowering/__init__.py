"""Lowerings: what becomes of the scans of an exported graph, so that a backend can run it."""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto

from videossm.export.lowering.contrib import lower_contrib
from videossm.export.lowering.graph import LoweringError, has_scans
from videossm.export.lowering.native import lower_native
from videossm.export.lowering.plugin import lower_plugin
from videossm.export.lowering.standard import lower_standard

__all__ = ["LOWERINGS", "LoweringError", "has_scans", "lower"]

LOWERINGS: dict[str, Callable[[ModelProto], ModelProto]] = {
    "standard": lower_standard,
    "contrib": lower_contrib,
    "native": lower_native,
    "plugin": lower_plugin,
}


def lower(model: ModelProto, name: str) -> ModelProto:
    """Lowers the scans of `model` in place and returns it; weights, external or not, are neither read nor copied.

    Raises LoweringError, one line, when there is no lowering of that name or it cannot express a scan.
    """
    if name not in LOWERINGS:
        raise LoweringError(f"lowering: got {name!r}, expected one of {', '.join(LOWERINGS)}; choose one of those")
    return LOWERINGS[name](model)
