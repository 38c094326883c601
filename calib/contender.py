"""A plan as this machine can roll it out, beside another: with its own graphs, or with some that compute the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx import ModelProto

from videossm.calib.backend import TappedBackend
from videossm.calib.emulate import emulate
from videossm.calib.emulate_fp8 import emulate_fp8
from videossm.calib.graph import load_graph
from videossm.calib.options import HALF
from videossm.calib.plans import quantised_engines, save_graph
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
        return self.files.get(engine, self.plan.path / self.plan.manifest.engines[engine].file)

    def rollout(self, prompt: str | None, seed: int) -> Rollout:
        """`prompt`: None for a plan without text."""
        return Rollout(self.plan, batch_of(prompt, self.plan), seed, backend=self.backend())


def contender(plan: Plan, folder: Path) -> Contender:
    """`plan` for a CPU: what ONNX Runtime cannot run there, or only slowly, as fp32 graphs, written to `folder`."""
    precision = plan.manifest.precision
    if precision in HALF:
        return Contender(_in_fp32(plan), "fp32", _written(plan, plan.manifest.engines, folder))
    if precision == "fp8":
        return Contender(plan, precision, _written(plan, quantised_engines(plan.manifest), folder))
    return Contender(plan, precision)


def runnable(model: ModelProto, precision: str) -> ModelProto:
    """A graph of `precision`, weights loaded, as one that a CPU runs about as fast as fp32; `model` may be changed."""
    if precision in HALF:
        return emulate(model)
    return emulate_fp8(model) if precision == "fp8" else model


def batch_of(prompt: str | None, plan: Plan) -> list[str] | None:
    """The same prompt for every stream of the plan's batch."""
    return None if prompt is None else [prompt] * plan.manifest.stream.batch


def _written(plan: Plan, engines: Iterable[str], folder: Path) -> dict[str, Path]:
    """The files of the given engines' runnable graphs."""
    folder.mkdir()
    files = {}
    for name in engines:
        file = plan.manifest.engines[name].file
        files[name] = folder / file
        save_graph(runnable(load_graph(plan.path / file), plan.manifest.precision), files[name])
    return files


def _in_fp32(plan: Plan) -> Plan:
    """`plan` with tensors and states in half precision described as fp32."""
    values = plan.manifest.model_dump(mode="json")
    ends = [tensor for engine in values["engines"].values() for tensor in (*engine["inputs"], *engine["outputs"])]
    for tensor in (*ends, *values["states"]):
        if tensor["dtype"] in HALF.values():
            tensor["dtype"] = "float32"
    return replace(plan, manifest=Manifest.model_validate_json(json.dumps(values)))
