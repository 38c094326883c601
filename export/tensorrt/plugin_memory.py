"""The memory engine with its scans as plugins. It has no weights, so the plan's config is all that it is made of."""

from __future__ import annotations

from pathlib import Path

import onnx

from videossm.calib.half import ELEMENT, to_half
from videossm.export.engines import memory_spec
from videossm.export.lowering.graph import opset_version
from videossm.export.trace import trace
from videossm.models.videossm.config import ModelConfig
from videossm.runtime import Plan


def write_plugin_memory(plan: Plan, folder: Path) -> Path:
    """Writes memory.onnx of `plan`, which must have a memory, in `folder`: its tensors and opset, lowering `plugin`."""
    manifest = plan.manifest
    assert manifest.engines.memory is not None, "the caller looked"
    spec = memory_spec(ModelConfig.from_dict(manifest.model))
    assert spec is not None, "the config has a memory, as the plan has"
    opset = opset_version(onnx.load(plan.path / manifest.engines.memory.file, load_external_data=False))
    file: str = trace(spec, folder, "plugin", opset)["file"]
    if manifest.precision in ELEMENT:
        onnx.save(to_half(onnx.load(folder / file), spec.name, manifest.precision), folder / file)
    return folder / file
