"""A deployment becomes the fp32 plan: every engine traced, lowered, and described in the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from onnx import ModelProto

from videossm.calib.plans import share
from videossm.export.check import check_deployment
from videossm.export.lowering import LoweringError, has_scans, lower
from videossm.export.lowering.graph import ONNX_DOMAINS
from videossm.export.manifest import in_deployment, manifest_values, stream_identity
from videossm.export.trace import described, trace
from videossm.models.family import Deployment, Engine, ModelError
from videossm.runtime import Plan
from videossm.runtime.errors import ManifestError
from videossm.runtime.manifest import TOKENIZER_FILE
from videossm.runtime.plan import write_manifest


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is made. What it computes, the deployment says."""

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
    """Fills the empty `folder` with the plan of `deployment`, and the empty `canonical` with its graphs not lowered.

    The plan's lowering is `standard` where that is what its graphs have, as without scans.
    `on_engine` is called with the name of each engine made. Raises ModelError for a deployment that does not fit
    together, or whose modules cannot be exported.
    """
    check_deployment(deployment, options.family)
    if deployment.text is not None:
        (folder / TOKENIZER_FILE).write_text(deployment.text.tokenizer, encoding="utf-8")
    engines: dict[str, Any] = {}
    scans: dict[str, Path] = {}
    lowering = "standard"
    for engine in deployment.engines:
        precision = deployment.precision if engine.when == "pass" else None
        model, path = trace(engine, _levels(deployment, engine), options.opset, canonical, precision)
        engines[engine.name] = _engine_entry(engine, model)
        if has_scans(model):
            scans[engine.name] = path
        for file in canonical.glob(f"{path.name}.*"):  # weights beside the graph
            share(file, folder / file.name)
        try:
            lower(model, options.lowering)
        except LoweringError as error:
            raise ModelError(f"engine {engine.name}: {error}") from error
        if any(entry.domain not in ONNX_DOMAINS for entry in model.opset_import):
            lowering = options.lowering
        onnx.save(model, str(folder / path.name))
        on_engine(engine.name)
    identity = stream_identity(deployment, options.family, engines)
    try:
        plan = write_manifest(folder, manifest_values(deployment, options.family, lowering, engines, identity))
    except ManifestError as error:
        raise in_deployment(error, engines, deployment) from error
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
