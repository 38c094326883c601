"""A deployment becomes the fp32 plan: every engine traced, lowered, and described in the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto

from videossm.calib.plans import share
from videossm.export.lowering import has_scans, lower
from videossm.export.trace import described, trace
from videossm.models.family import Deployment, Engine, ModelError
from videossm.runtime import Plan
from videossm.runtime.manifest import SCHEMA_VERSION, TOKENIZER_FILE
from videossm.runtime.noise import noise
from videossm.runtime.plan import write_manifest

DISTRIBUTIONS = ("videossm", "torch", "onnx", "onnxscript")  # whose versions a manifest records
SELF_TEST_NUMBERS = 8


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is made; what it computes is the deployment's affair."""

    family: str
    lowering: str = "contrib"
    opset: int = 23


class Built(NamedTuple):
    """The plan, and the graphs with scans as they were before they were lowered, by engine."""

    plan: Plan
    scans: Mapping[str, Path]


def build_plan(
    deployment: Deployment,
    options: BuildOptions,
    folder: Path,
    canonical: Path,
    on_engine: Callable[[str], None] = lambda name: None,
) -> Built:
    """Fills the empty `folder` with the plan of `deployment`, and the empty `canonical` with its graphs with scans.

    `on_engine` is called with the name of each engine made. Raises ModelError for a deployment that does not fit
    together.
    """
    if deployment.text is not None:
        (folder / TOKENIZER_FILE).write_text(deployment.text.tokenizer, encoding="utf-8")
    engines: dict[str, Any] = {}
    scans: dict[str, Path] = {}
    for engine in deployment.engines:
        if engine.name in engines:
            raise ModelError(f"engines: got {engine.name} twice, expected each name once; rename one")
        model, path = trace(engine, _levels(deployment, engine), options.opset, canonical)
        engines[engine.name] = _engine_entry(engine, model)
        if has_scans(model):
            scans[engine.name] = path
        for file in canonical.glob(f"{path.name}.*"):  # weights beside the graph
            share(file, folder / file.name)
        lower(model, options.lowering)
        onnx.save(model, str(folder / path.name))
        on_engine(engine.name)
    plan = write_manifest(folder, _manifest(deployment, options, engines))
    return Built(plan, scans)


def _levels(deployment: Deployment, engine: Engine) -> dict[str, tuple[float, ...]]:
    """All values that each scalar input of `engine` can have, in the order of the passes."""
    levels = {}
    for name, source in engine.inputs.items():
        if source.startswith("pass."):
            scalar = source.removeprefix("pass.")
            found = [p.scalars[scalar] for p in deployment.passes if p.engine == engine.name and scalar in p.scalars]
            levels[name] = tuple(dict.fromkeys(found))
    return levels


def _engine_entry(engine: Engine, model: ModelProto) -> dict[str, Any]:
    """The manifest's entry: what was traced, with sources and targets."""
    entry: dict[str, Any] = {"file": f"{engine.name}.onnx", "weights": None}
    for kind, values, role, named in (
        ("inputs", model.graph.input, "source", engine.inputs),
        ("outputs", model.graph.output, "target", engine.outputs),
    ):
        entry[kind] = [{**described(value), role: named[value.name]} for value in values]
    return entry


def _manifest(deployment: Deployment, options: BuildOptions, engines: Mapping[str, Any]) -> dict[str, Any]:
    text, states = deployment.text, _states(deployment, engines)
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": deployment.name,
        "family": options.family,
        "precision": "fp32",  # others are made of this plan, by videossm.calib
        "backend": "onnxruntime",
        "lowering": options.lowering,
        "target": None,
        "stream": asdict(deployment.stream),
        "window": asdict(deployment.window) if deployment.window else None,
        "text": None,
        "states": states,
        "engines": engines,
        "passes": [asdict(each) for each in deployment.passes],
        "calls": [{"engine": e.name, "when": e.when} for e in deployment.engines if e.when != "pass"],
        "lower_precision": asdict(deployment.precision),
        "self_test": {"noise": noise(0, 0, 0, (SELF_TEST_NUMBERS,)).astype(np.float64).tolist()},
        "model": dict(deployment.config),
        "versions": {name: version(name) for name in DISTRIBUTIONS} | {"onnxruntime": onnxruntime.__version__},
    }
    if text is not None:
        values["text"] = {
            "length": text.length,
            "padding_id": _padding_id(text.tokenizer),
            "unknown": text.unknown,
            "examples": list(text.examples),
        }
    values["stream_identity"] = _stream_identity(deployment, values)
    return values


def _states(deployment: Deployment, engines: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each with dtype and shape: those of the tensor that writes it, which for a ring is one chunk's part."""
    written = {
        tensor["target"]: tensor for engine in engines.values() for tensor in engine["outputs"] if "target" in tensor
    }
    found = []
    for name, state in deployment.states.items():
        tensor = written.get(f"state.{name}")
        if tensor is None:
            raise ModelError(f"states: got {name}, which no engine writes, expected an output with target state.{name}")
        found.append({**asdict(state), "name": name, "dtype": tensor["dtype"], "shape": tensor["shape"]})
    return found


def _padding_id(tokenizer: str) -> int:
    """The id of the tokenizer's padding, or else of its token [PAD]. Raises ModelError where it has neither."""
    from tokenizers import Tokenizer

    read = Tokenizer.from_str(tokenizer)
    padding = (read.padding or {}).get("pad_id", read.token_to_id("[PAD]"))
    if padding is None:
        raise ModelError("tokenizer: got no padding and no [PAD] token, expected one; add it")
    return int(padding)


def _stream_identity(deployment: Deployment, values: Mapping[str, Any]) -> str:
    """SHA-256 of what a state depends on, whatever the backend, precision and lowering: program and weights."""
    digest = hashlib.sha256()
    states = [{key: state[key] for key in ("name", "kind", "per_pass", "shape")} for state in values["states"]]
    parts = {key: values[key] for key in ("family", "stream", "window", "passes", "model")}
    digest.update(json.dumps({**parts, "states": states, "noise": "philox4x32-10"}, sort_keys=True).encode())
    seen: set[int] = set()
    for engine in deployment.engines:
        for name, tensor in engine.module.state_dict().items():
            if tensor.data_ptr() not in seen:  # engines share weights
                seen.add(tensor.data_ptr())
                digest.update(f"{engine.name}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(memoryview(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()
