"""A model becomes a plan: every engine traced, and the manifest that says how they fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
from tokenizers import Tokenizer

from videossm.export.engines import engine_specs, wiring
from videossm.export.trace import trace
from videossm.models.config import ModelConfig
from videossm.models.model import VideoModel
from videossm.runtime import Plan, contract
from videossm.runtime.manifest import SCHEMA_VERSION, TOKENIZER_FILE
from videossm.runtime.plan import write_manifest

DISTRIBUTIONS = ("videossm", "torch", "onnx", "onnxscript")  # whose versions a manifest records


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is made; what it computes is the model's config."""

    backend: str = "onnxruntime"
    lowering: str = "contrib"
    opset: int = 23


def build_plan(
    model: VideoModel,
    tokenizer: Tokenizer,
    options: BuildOptions,
    folder: Path,
    on_engine: Callable[[str], None] = lambda name: None,
) -> Plan:
    """Fills the empty `folder` with the plan of `model`, which it returns.

    `on_engine` is called with the name of each engine made.
    """
    tokenizer.save(str(folder / TOKENIZER_FILE))
    engines = {}
    for spec in engine_specs(model):
        engines[spec.name] = trace(spec, folder, options.lowering, options.opset)
        on_engine(spec.name)
    return write_manifest(folder, _manifest(model.config, options, engines))


def _manifest(config: ModelConfig, options: BuildOptions, engines: dict[str, Any]) -> dict[str, Any]:
    frames = next(tensor for tensor in engines["decoder"]["outputs"] if tensor["name"] == contract.FRAMES)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": config.name,
        "precision": "fp32",  # others are made of this plan, by videossm.calib
        "backend": options.backend,
        "lowering": options.lowering,
        "model": config.to_dict(),
        "stream": {
            "batch": config.batch,
            "fps": config.fps,
            "height": config.height,
            "width": config.width,
            "frames_per_chunk": frames["shape"][1],
            "chunk_frames": config.window.chunk_frames,
            "window_frames": config.window.window_frames,
            "sink_frames": config.window.sink_frames,
            "rope_frame": config.window.rope_frame,
        },
        "sampler": {"kind": config.sampler.kind, "sigmas": list(config.sampler.sigmas)},
        "text": {"length": config.transformer.text_len},
        "engines": engines,
        **wiring(config),
        "versions": {name: version(name) for name in DISTRIBUTIONS} | {"onnxruntime": onnxruntime.__version__},
    }
