"""Plans on a GPU, as parts of gpu_session.py: figures of `videossm-bench`, and the error beside a plan on the CPU.

Each plan is rolled out on the GPU, graphs by every execution provider that ONNX Runtime has for it. What cannot run
says why, by the words of its library: engines are tried also on GPUs that they are not for.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from gpu_session_parts import Item, Row

from videossm.runtime import Plan, Rollout
from videossm.runtime.backends import PROVIDERS, TENSORRT
from videossm.runtime.cli.bench import measure
from videossm.runtime.errors import UserError
from videossm.runtime.prompt import PromptTokenizer
from videossm.runtime.state import Snapshot, load_state

TIMED_CHUNKS, COMPARED_CHUNKS = 24, 6
SEED = 7
BARS = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2, "fp8": 1e-2, "int8": 1e-2}  # of the largest chunk's error
BESIDE_FP32 = {"fp16": 1e-2, "bf16": 1e-1}  # of a plan whose precision the CPU does not run

QUICK = ("--no-verify", "--report", "none", "--lowering", "standard")
SHORT_CALIBRATION = ("--calibration-size", "2", "--calibration-chunks", "8")
FULL = ("videossm-1.3b", "--random-weights")
WIDE = (*FULL, "--set", "layers=2", "--height", "240", "--width", "416")
RTX = ("--backend", "tensorrt-rtx")
MADE: dict[str, tuple[str, ...]] = {  # by worth; a plan made before may be the source of a later one
    "shapes-fp32": ("shapes", *QUICK),
    "shapes-bf16": ("shapes", "--precision", "bf16", *QUICK),
    "shapes-bf16-portable": ("shapes-bf16.plan", *RTX),
    "wide-fp32": (*WIDE, *QUICK),
    "wide-bf16": (*WIDE, "--precision", "bf16", *QUICK),
    "wide-bf16-portable": ("wide-bf16.plan", *RTX),
    "full-bf16": (*FULL, "--precision", "bf16", *QUICK),
    "full-bf16-portable": ("full-bf16.plan", *RTX),
    "shapes-fp16": ("shapes", "--precision", "fp16", *QUICK),
    "wide-fp16": (*WIDE, "--precision", "fp16", *QUICK),
    "shapes-fp8": ("shapes", "--precision", "fp8", *SHORT_CALIBRATION, *QUICK),
    "shapes-int8": ("shapes", "--precision", "int8", *SHORT_CALIBRATION, *QUICK),
    "shapes-fp16-sm_80": ("shapes-fp16.plan", *RTX, "--gpu-arch", "sm_80"),
}


def make(folder: Path) -> None:
    """Writes the plans to measure, which takes the exporter and TensorRT-RTX, and no GPU. Those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in MADE.items():
        if not (folder / f"{name}.plan").exists():
            words = [str(folder / word) if word.endswith(".plan") else word for word in options]
            command = [sys.executable, "-m", "videossm.export.cli", *words, "-o", str(folder / f"{name}.plan")]
            print(" ".join(command[3:]), file=sys.stderr)
            subprocess.run(command, check=True)


def found(folder: Path) -> list[Plan]:
    """The plans in `folder`, those of MADE first and in its order."""
    order = {f"{name}.plan": place for place, name in enumerate(MADE)}
    paths = [path.parent for path in folder.glob("*/manifest.json")]
    return [Plan.open(path) for path in sorted(paths, key=lambda path: (order.get(path.name, len(order)), path.name))]


def figures(folder: Path) -> Iterator[Item]:
    """How fast: an item for each plan and provider."""
    for plan in found(folder):
        for provider in providers(plan):
            yield Item(_name(plan, provider), partial(figures_of, plan, provider))


def errors(folder: Path) -> Iterator[Item]:
    """How right: an item for each plan and provider that has a plan to be compared with."""
    plans = found(folder)
    for plan in plans:
        reference = reference_of(plan, plans)
        if reference is not None:
            for provider in providers(plan):
                yield Item(_name(plan, provider), partial(errors_of, plan, reference, provider))


def providers(plan: Plan) -> tuple[str | None, ...]:
    return (None,) if plan.manifest.backend in TENSORRT else PROVIDERS


def _name(plan: Plan, provider: str | None) -> str:
    return f"{plan.path.name} by {provider or plan.manifest.backend}"


def figures_of(plan: Plan, provider: str | None) -> Row:
    """Those of `videossm-bench`, or why it does not run."""
    manifest = plan.manifest
    target = None if manifest.target is None else list(manifest.target.architectures)
    row: Row = {"precision": manifest.precision, "backend": manifest.backend, "target": target}
    row["versions"] = manifest.versions
    try:
        with Rollout(plan, prompts_of(plan), SEED, "cuda:0", provider=provider) as rollout:
            return row | {"figures": measure(rollout, TIMED_CHUNKS), "passed": None}
    except UserError as error:
        return row | {"failed": str(error), "passed": None}


def errors_of(plan: Plan, reference: Plan, provider: str | None) -> Row:
    """Of each chunk's clean sample; `passed` by the largest."""
    same = reference.manifest.precision == plan.manifest.precision
    bar = (BARS if same else BESIDE_FP32)[plan.manifest.precision]
    row: Row = {"reference": reference.path.name, "bar": bar}
    try:
        with (
            Rollout(reference, prompts_of(reference), SEED, "cpu") as expected,
            Rollout(plan, prompts_of(plan), SEED, "cuda:0", provider=provider) as rollout,
        ):
            found = relative_errors(expected, rollout, COMPARED_CHUNKS)
    except UserError as error:
        return row | {"failed": str(error), "passed": None}
    return row | {"errors": found, "passed": max(found) <= bar}


def prompts_of(plan: Plan) -> list[str] | None:
    text = plan.manifest.text
    return [PromptTokenizer(plan.tokenizer_file, text).words()[0]] * plan.manifest.stream.batch if text else None


def reference_of(plan: Plan, plans: list[Plan]) -> Plan | None:
    """The graphs that `plan` is, or that its engines are built of; the fp32 ones where a CPU has no such arithmetic."""
    graphs = [each for each in plans if each.manifest.backend == "onnxruntime" and _is_same_stream(each, plan)]
    wanted = [plan.manifest.precision] if plan.manifest.precision != "bf16" else []
    by_precision = {each.manifest.precision: each for each in graphs}
    return next((by_precision[name] for name in (*wanted, "fp32") if name in by_precision), None)


def _is_same_stream(candidate: Plan, plan: Plan) -> bool:
    ours, its = plan.manifest, candidate.manifest
    return (its.stream_identity, its.stream) == (ours.stream_identity, ours.stream)


def relative_errors(reference: Rollout, rollout: Rollout, chunks: int) -> list[float]:
    """Of each chunk's clean sample, every chunk made from the reference's state."""
    found = []
    with TemporaryDirectory() as temporary:
        state = Path(temporary) / "state"
        for _ in range(chunks):
            reference.save(state)
            rollout.restore(Snapshot(*load_state(state, rollout.plan.manifest)))
            next(reference), next(rollout)
            expected, got = (each.sample.astype(np.float64) for each in (reference, rollout))
            found.append(float(np.linalg.norm(got - expected) / np.linalg.norm(expected)))
    return found


def markdown_rows(of_figures: dict[str, Row], of_errors: dict[str, Row]) -> list[list[str]]:
    rows = []
    for name, row in of_figures.items():
        timed, compared = row.get("figures"), of_errors.get(name, {})
        worst: Any = max(compared["errors"]) if "errors" in compared else None
        rows.append(
            [
                name,
                f"{timed['ms_per_chunk_p50']:.1f}" if timed else row["failed"],
                ", ".join(f"{engine} {ms:.2f}" for engine, ms in timed["engine_ms_per_chunk"].items()) if timed else "",
                f"{timed['outside_engines_share']:.1%}" if timed else "",
                f"{timed['device_usage']['used_bytes'] / 1e6:.0f}" if timed and timed["device_usage"] else "",
                f"{worst:.1e} beside {compared['reference']}" if worst is not None else compared.get("failed", ""),
            ]
        )
    return rows
