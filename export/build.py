"""A model becomes a plan: every engine traced into a temporary folder, which is renamed when it is whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from videossm.runtime.errors import PlanError
from videossm.runtime.manifest import MANIFEST_FILE, SCHEMA_VERSION, TOKENIZER_FILE
from videossm.runtime.plan import write_manifest

DISTRIBUTIONS = ("videossm", "torch", "onnx", "onnxscript")  # whose versions a manifest records


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is made; what it computes is the model's config."""

    precision: str = "fp32"
    backend: str = "onnxruntime"
    lowering: str = "contrib"
    opset: int = 23


def build_plan(
    model: VideoModel,
    tokenizer: Tokenizer,
    options: BuildOptions,
    out: Path,
    on_engine: Callable[[str], None] = lambda name: None,
) -> None:
    """Writes the plan `out`; an older plan there is replaced only once the new one is whole.

    `on_engine` is called with each engine's name before it is traced. Raises PlanError when `out`
    exists and is no plan, or its folder cannot be written.
    """
    with _finished_folder(out) as folder:
        tokenizer.save(str(folder / TOKENIZER_FILE))
        engines = {}
        for spec in engine_specs(model):
            on_engine(spec.name)
            engines[spec.name] = trace(spec, folder, options.lowering, options.opset)
        write_manifest(folder, _manifest(model.config, options, engines))


def _manifest(config: ModelConfig, options: BuildOptions, engines: dict[str, Any]) -> dict[str, Any]:
    frames = next(tensor for tensor in engines["decoder"]["outputs"] if tensor["name"] == "frames")
    return {
        "schema_version": SCHEMA_VERSION,
        "name": config.name,
        "precision": options.precision,
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


def check_out(out: Path) -> None:
    """Raises PlanError unless a plan can be written at `out`; asked before minutes are spent."""
    if out.exists() and not (out / MANIFEST_FILE).is_file():
        raise PlanError(f"output: got {out}, which exists and is no plan, expected a new name; choose another -o")
    if not out.parent.is_dir():
        raise PlanError(f"output: got {out}, whose folder does not exist, expected one that does; make it first")


@contextmanager
def _finished_folder(out: Path) -> Iterator[Path]:
    check_out(out)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise PlanError(
            f"output: got {out.parent}, not writable ({error.strerror}), expected a writable folder"
        ) from None
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
