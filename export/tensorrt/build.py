"""A plan of ONNX graphs becomes one of engines, for one of the two TensorRTs; all else in it stays the same."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from videossm.calib.plans import graph_files, in_precision, save_graph, share
from videossm.export.lowering import lower
from videossm.export.tensorrt.cache_update import with_cache_updates
from videossm.export.tensorrt.engine import EngineBuilder, Progress
from videossm.export.tensorrt.options import BUILDING_GPUS, TensorRtOptions
from videossm.export.tensorrt.worker import in_thread
from videossm.export.tensorrt.zero_points import without_zero_points
from videossm.runtime import Plan
from videossm.runtime.backends.tensorrt.module import load_tensorrt
from videossm.runtime.backends.tensorrt.preflight import check_build, check_graphs, check_room, portable_architectures
from videossm.runtime.errors import PlanError, require_none
from videossm.runtime.machine import Machine, probe_machine
from videossm.runtime.plan import write_manifest


@dataclass(frozen=True)
class BuiltEngine:
    """What became of a graph.

    `as_it_is`: whether it was the plan's own, and not one that took its place. `fused`: whether each attention in it is
    one kernel.
    """

    seconds: float
    size_bytes: int
    as_it_is: bool
    fused: bool


def build_engines(
    plan: Plan, scans: Mapping[str, Path], backend: str, options: TensorRtOptions, folder: Path, progress: Progress
) -> dict[str, BuiltEngine]:
    """Fills the empty `folder` with the engines of the ONNX `plan`, for "tensorrt" or "tensorrt-rtx"; by their name.

    `scans`: the fp32 graphs with scans that are not lowered, by engine. With plugins these engines are built of them.
    Raises UserError for a plan or options that do not fit, PreflightError with all that would keep the build from
    its end, BackendError for what fails all the same. What is in `folder` then is no plan.
    """
    machine = probe_machine([backend], BUILDING_GPUS)
    check_source(plan)
    options.check(backend, machine)
    lowering = "plugin" if scans and options.plugins else plan.manifest.lowering
    require_none(check_build(backend, plan.manifest.precision, options.gpu_arch, lowering, machine))
    trt = load_tensorrt(backend)
    with TemporaryDirectory(prefix=".graphs-", dir=folder.parent) as temporary:
        graphs = _graphs(plan, scans if options.plugins else {}, Path(temporary))
        # The builder before the graphs are looked at: it loads the plugins, which the parser needs.
        engine_builder = in_thread(lambda: EngineBuilder(trt, options, progress))
        require_none(check_room(graphs, folder, machine) + in_thread(lambda: check_graphs(trt, graphs)))
        built = {}
        for name, spec in plan.manifest.engines.items():
            engine, started = folder / f"{name}.engine", time.perf_counter()
            has_plugins = lowering == "plugin" and name in scans
            tf32 = plan.manifest.takes_tf32(name)
            fused = engine_builder.build(name, spec, graphs[name], engine, has_plugins, tf32)
            as_it_is = graphs[name].parent == plan.path
            built[name] = BuiltEngine(time.perf_counter() - started, engine.stat().st_size, as_it_is, fused)
        _add_files(plan, options, graphs, folder)
    write_manifest(folder, _manifest(plan, backend, lowering, options, machine, str(trt.__version__)))
    return built


def _graphs(plan: Plan, scans: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """What each engine is built of: the plan's own graph, or one in `folder`.

    Those of `scans` come in the plan's precision, lowered to plugins; TensorRT takes no zero points, and writes in
    place by an operator of its own.
    """
    graphs = {name: plan.path / spec.file for name, spec in plan.manifest.engines.items()}
    for name, canonical in scans.items():
        graphs[name] = folder / canonical.name
        save_graph(lower(in_precision(plan, name, canonical), "plugin"), graphs[name])
    graphs = {name: with_cache_updates(plan.manifest.in_place(name), graph, folder) for name, graph in graphs.items()}
    if plan.manifest.precision == "int8":
        graphs = {name: without_zero_points(graph, folder) for name, graph in graphs.items()}
    return graphs


def check_source(plan: Plan) -> None:
    """Raises PlanError unless `plan` is one of ONNX graphs."""
    if plan.manifest.backend != "onnxruntime":
        raise PlanError(
            f"plan: got {plan.path} for {plan.manifest.backend}, expected one of ONNX graphs; "
            "export it with --backend onnxruntime"
        )


def _add_files(plan: Plan, options: TensorRtOptions, graphs: Mapping[str, Path], folder: Path) -> None:
    """All of `plan` but its graphs; of a plan without weights those as well, for the weights that they hold."""
    of_graphs = {name for spec in plan.manifest.engines.values() for name in graph_files(plan.path / spec.file)}
    for name in plan.manifest.files.keys() - of_graphs:
        (folder / name).parent.mkdir(exist_ok=True)
        share(plan.path / name, folder / name)
    if options.strip_weights:
        for graph in graphs.values():
            for name in graph_files(graph):
                share(graph.with_name(name), folder / name)


def _manifest(
    plan: Plan, backend: str, lowering: str, options: TensorRtOptions, machine: Machine, version: str
) -> dict[str, Any]:
    values = plan.values()
    for name, engine in values["engines"].items():
        engine.update(file=f"{name}.engine", weights=engine["file"] if options.strip_weights else None)
    target = _target(backend, plan.manifest.precision, options, machine)
    versions = plan.manifest.versions | {backend: version}
    return {**values, "backend": backend, "lowering": lowering, "target": target, "versions": versions}


def _target(backend: str, precision: str, options: TensorRtOptions, machine: Machine) -> dict[str, Any]:
    """The manifest's `target`."""
    streams = options.weight_streaming
    if backend == "tensorrt-rtx":
        architectures = options.gpu_arch or portable_architectures(precision)
        return {"architectures": architectures, "later": not options.gpu_arch, "weight_streaming": streams}
    if options.hardware_compatible == "ampere_plus":
        target: dict[str, Any] = {"architectures": ("sm_80",), "later": True}
    else:
        target = {"architectures": (machine.driver.gpus[0].architecture,)}  # the preflight saw one
    return {**target, "version_compatible": options.version_compatible, "weight_streaming": streams}
