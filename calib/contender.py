"""A plan as this machine can roll it out, beside another: with its own graphs, or with some that compute the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
from onnx import ModelProto

from videossm.calib.backend import TappedBackend
from videossm.calib.emulate import emulate
from videossm.calib.emulate_fp8 import emulate_fp8
from videossm.calib.plans import HALF, QUANTISED_ENGINES, save_graph
from videossm.runtime import Plan, Rollout
from videossm.runtime.manifest import Manifest


@dataclass(frozen=True)
class Contender:
    """A plan to measure. `files`: graphs of `precision` in place of its own, with the same inputs and outputs."""

    plan: Plan
    precision: str
    files: Mapping[str, Path] = field(default_factory=dict)

    def backend(self, threads: int | None = None) -> TappedBackend:
        return TappedBackend({}, lambda engine, tensors: None, self.files, self.precision, threads)

    def file(self, engine: str) -> Path:
        """The graph of an engine."""
        own = {name: spec.file for name, spec in self.plan.manifest.engines.items()}
        return self.files.get(engine, self.plan.path / own[engine])

    def rollout(self, prompt: str, seed: int) -> Rollout:
        return Rollout(self.plan, [prompt] * self.plan.manifest.stream.batch, seed, backend=self.backend())


def contender(plan: Plan, folder: Path) -> Contender:
    """`plan` for a CPU: what ONNX Runtime cannot run there, or only slowly, as fp32 graphs, written to `folder`."""
    precision = plan.manifest.precision
    if precision in HALF:
        names = tuple(name for name, _ in plan.manifest.engines.items())
        return Contender(_in_fp32(plan), "fp32", _written(plan, names, folder))
    if precision == "fp8":
        return Contender(plan, precision, _written(plan, QUANTISED_ENGINES, folder))
    return Contender(plan, precision)


def runnable(model: ModelProto, precision: str) -> ModelProto:
    """A graph of `precision`, weights loaded, as one that a CPU runs about as fast as fp32; `model` may be changed."""
    if precision in HALF:
        return emulate(model)
    return emulate_fp8(model) if precision == "fp8" else model


def _written(plan: Plan, engines: tuple[str, ...], folder: Path) -> dict[str, Path]:
    """The files of the given engines' runnable graphs."""
    folder.mkdir()
    specs, files = dict(plan.manifest.engines.items()), {}
    for name in engines:
        files[name] = folder / specs[name].file
        save_graph(runnable(onnx.load(plan.path / specs[name].file), plan.manifest.precision), files[name])
    return files


def _in_fp32(plan: Plan) -> Plan:
    """`plan` with tensors in half precision described as fp32."""
    values = plan.manifest.model_dump(mode="json")
    for engine in filter(None, values["engines"].values()):
        for tensor in (*engine["inputs"], *engine["outputs"]):
            if tensor["dtype"] in HALF.values():
                tensor["dtype"] = "float32"
    return replace(plan, manifest=Manifest.model_validate_json(json.dumps(values)))
