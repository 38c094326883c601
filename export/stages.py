"""The stages of an export, each with its progress and its part of the result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from videossm.calib.options import PrecisionOptions
from videossm.export.target import ExportTarget
from videossm.runtime import Plan
from videossm.runtime.cli import print_json, progress, say

if TYPE_CHECKING:  # torch takes seconds to import: --help and a wrong option do without
    from videossm.export.build import Built
    from videossm.models.family import Deployment


class VerificationError(Exception):
    """The plan does not compute what the model does: a defect of the exporter, not of the input."""


@dataclass
class Result:
    """What `--json` prints."""

    plan: str
    name: str
    precision: str
    backend: str
    lowering: str
    parameters: int | None  # null for engines of a plan that was there before
    size_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    chunk_errors: list[float] = field(default_factory=list)  # relative, of the clean samples; empty without --verify
    pixel_errors: list[int] = field(default_factory=list)  # largest of each chunk, of 255
    tolerance: float | None = None  # of chunk_errors
    accuracy: dict[str, str | int | float] = field(default_factory=dict)  # the summary of report.json
    engines: dict[str, dict[str, float]] = field(default_factory=dict)  # of TensorRT: seconds, size_bytes, fused
    commands: dict[str, str] = field(default_factory=dict)  # that build the engines of the plan's own graphs by hand

    def finish(self, as_json: bool, line: str, by_hand: str = "by hand:") -> None:
        """Prints all of it: as JSON on stdout, or on stderr, `by_hand` before the commands and `line` as the last."""
        if as_json:
            print_json(vars(self))
            return
        for label, value in self.accuracy.items():
            say(f"{label:<22} {value}")
        for name, engine in self.engines.items():
            unfused = "" if engine["fused"] else "   attention is not fused"
            say(f"{name:<12} {engine['seconds']:6.1f} s {engine['size_bytes'] / 1e6:8.1f} MB{unfused}")
        if self.commands:
            say("\n".join([by_hand, *self.commands.values()]))
        say(line)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds what it takes to `seconds`."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - started


def trace_graphs(deployment: Deployment, family: str, target: ExportTarget, folder: Path, canonical: Path) -> Built:
    """The fp32 plan of ONNX graphs, in the empty `folder`; its graphs with scans, not lowered, in `canonical`."""
    from videossm.export.build import BuildOptions, build_plan

    with progress(len(deployment.engines), "engine") as bar:

        def on_engine(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        options = BuildOptions(family, lowering=target.graph_lowering, opset=target.opset)
        return build_plan(deployment, options, folder, canonical, on_engine)


def verify_graphs(result: Result, plan: Plan, deployment: Deployment, chunks: int | None, quiet: bool) -> None:
    """Raises VerificationError unless `plan` computes what the modules do."""
    from videossm.export.verify import PIXEL_TOLERANCE, TOLERANCE, chunks_to_verify, verify

    result.tolerance = TOLERANCE
    for error in verify(plan, deployment, chunks or chunks_to_verify(plan)):
        result.chunk_errors.append(error.sample)
        result.pixel_errors.append(error.pixels)
        line = f"chunk {error.index}: relative error {error.sample:.1e}, pixels differ by {error.pixels}"
        if not error.small:
            raise VerificationError(
                f"verify: got {line}, expected at most {TOLERANCE:.0e} and {PIXEL_TOLERANCE}; "
                "nothing was written: report it, or pass --no-verify"
            )
        if not quiet:
            say(line)


def change_precision(result: Result, options: PrecisionOptions, fp32: Plan, folder: Path) -> Plan:
    """From the fp32 plan the one of the wanted precision, in the empty `folder`."""
    from videossm.calib.pipeline import lower_precision

    made = lower_precision(fp32, options, folder, progress, say)
    result.accuracy = made.report.summary if made.report else {}
    return made.plan


def build_engines(
    result: Result, plan: Plan, scans: Mapping[str, Path], target: ExportTarget, folder: Path, shown: Path
) -> None:
    """From a plan of ONNX graphs that of engines; the commands name the graphs as if they were in `shown`.

    `scans`: graphs that were not lowered, by engine, which plugins are built of.
    """
    from videossm.export.tensorrt import build
    from videossm.export.tensorrt.command import build_command

    built = build.build_engines(plan, scans, target.backend, target.building, folder, progress)
    for name, spec in plan.manifest.engines.items():
        made = built[name]
        result.engines[name] = {"seconds": made.seconds, "size_bytes": made.size_bytes, "fused": made.fused}
        if made.as_it_is:
            graph = shown / spec.file
            how = target.building, made.fused, plan.manifest.takes_tf32(name)
            result.commands[name] = build_command(target.backend, graph, f"{name}.engine", *how)
