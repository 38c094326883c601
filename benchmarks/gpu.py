"""Plans on this machine's GPU: `python benchmarks/gpu.py PLAN .. --out gpu.md --json gpu.json`.

Each plan is rolled out on the GPU, graphs with every execution provider that ONNX Runtime has for it. Measured are
time, device memory and the share of time outside the engines, and the relative error of the clean sample of each of 24
chunks against the graphs of the same precision on the CPU, both from the CPU's state. What cannot run says why, by the
words of its library: engines are tried also on GPUs that they are not for.

`--make FOLDER` writes the plans to measure, which takes the exporter and TensorRT-RTX, and no GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from machine import add_outputs, measured_on, table, write

from videossm.runtime import Plan, Rollout
from videossm.runtime.backends import PROVIDERS, TENSORRT
from videossm.runtime.cli.bench import measure
from videossm.runtime.driver import probe_driver
from videossm.runtime.errors import UserError
from videossm.runtime.prompt import PromptTokenizer

CHUNKS = 24
SEED = 7
BARS = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2, "fp8": 1e-2, "int8": 1e-2}  # of the largest chunk's error

QUICK = ("--no-verify", "--report", "none", "--lowering", "standard")
SHORT_CALIBRATION = ("--calibration-size", "2", "--calibration-chunks", "8")
WIDE = ("videossm-1.3b", "--random-weights", "--set", "layers=2", "--height", "240", "--width", "416")
RTX = ("--backend", "tensorrt-rtx")
MADE: dict[str, tuple[str, ...]] = {  # what --make exports; a plan made before may be the source of a later one
    "shapes-fp32": ("shapes", *QUICK),
    "shapes-fp16": ("shapes", "--precision", "fp16", *QUICK),
    "shapes-fp8": ("shapes", "--precision", "fp8", *SHORT_CALIBRATION, *QUICK),
    "shapes-int8": ("shapes", "--precision", "int8", *SHORT_CALIBRATION, *QUICK),
    "wide-fp32": (*WIDE, *QUICK),
    "wide-fp16": (*WIDE, "--precision", "fp16", *QUICK),
    "shapes-fp16-sm_80": ("shapes-fp16.plan", *RTX, "--gpu-arch", "sm_80"),
    "shapes-fp16-portable": ("shapes-fp16.plan", *RTX),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", metavar="PLAN", nargs="*", type=Path)
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make the plans, measure nothing")
    add_outputs(parser)
    args = parser.parse_args()
    if args.make:
        return make(args.make)
    driver = probe_driver()
    if not driver.gpus or not args.plans:
        got = "no PLAN" if driver.gpus else f"no GPU ({driver.problem})"
        print(f"gpu.py: got {got}, expected one; `--make FOLDER` writes plans without a GPU", file=sys.stderr)
        return 2
    plans = [Plan.open(path) for path in args.plans]
    rows = [
        row_of(plan, plans, provider)
        for plan in plans
        for provider in ((None,) if plan.manifest.backend in TENSORRT else PROVIDERS)
    ]
    gpu = driver.gpus[0]
    on = {"gpu": gpu.name, "architecture": gpu.architecture, "driver": driver.version, "cuda": driver.cuda}
    result = measured_on() | on | {"rows": rows}
    write(result, markdown(result), args.out, args.json_out)
    return 1 if any(row["passed"] is False for row in rows) else 0


def make(folder: Path) -> int:
    """Those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in MADE.items():
        if not (folder / f"{name}.plan").exists():
            words = [str(folder / word) if word.endswith(".plan") else word for word in options]
            command = [sys.executable, "-m", "videossm.export.cli", *words, "-o", str(folder / f"{name}.plan")]
            print(" ".join(command[3:]), file=sys.stderr)
            subprocess.run(command, check=True)
    return 0


def row_of(plan: Plan, plans: list[Plan], provider: str | None) -> dict[str, Any]:
    """Figures, errors where `plans` have the graphs, or why it does not run."""
    manifest = plan.manifest
    row: dict[str, Any] = {
        "plan": plan.path.name,
        "precision": manifest.precision,
        "backend": manifest.backend,
        "provider": provider,
        "target": None if manifest.target is None else list(manifest.target.architectures),
        "versions": manifest.versions,
        "passed": None,
    }
    text = manifest.text
    prompts = [PromptTokenizer(plan.tokenizer_file, text).words()[0]] * manifest.stream.batch if text else None
    try:
        rollout = Rollout(plan, prompts, SEED, "cuda:0", provider=provider)
        row["figures"] = measure(rollout, CHUNKS)
        reference = next((candidate for candidate in plans if is_reference(candidate, plan)), None)
        if reference is not None:
            row["errors"] = relative_errors(Rollout(reference, prompts, SEED, "cpu"), rollout, CHUNKS)
            row["passed"] = max(row["errors"]) <= BARS[manifest.precision]
    except UserError as error:
        row["failed"] = str(error)
    return row


def is_reference(candidate: Plan, plan: Plan) -> bool:
    """The graphs that `plan` is, or that its engines are built of."""
    ours, its = plan.manifest, candidate.manifest
    return its.backend == "onnxruntime" and (its.name, its.precision, its.stream) == (
        ours.name,
        ours.precision,
        ours.stream,
    )


def relative_errors(reference: Rollout, rollout: Rollout, chunks: int) -> list[float]:
    """Of each chunk's clean sample, every chunk made from the reference's state."""
    errors = []
    for _ in range(chunks):
        rollout.restore(reference.snapshot())
        next(reference), next(rollout)
        expected, got = (made.sample.astype(np.float64) for made in (reference, rollout))
        errors.append(float(np.linalg.norm(got - expected) / np.linalg.norm(expected)))
    return errors


def markdown(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        figures = row.get("figures")
        rows.append(
            [
                row["plan"],
                row["provider"] or row["backend"],
                f"{figures['ms_per_chunk_p50']:.1f}" if figures else row["failed"],
                f"{figures['outside_engines_share']:.1%}" if figures else "",
                f"{figures['device_usage']['used_bytes'] / 1e6:.0f}" if figures else "",
                f"{max(row['errors']):.1e}" if "errors" in row else "",
            ]
        )
    driver = f"driver {result['driver']}"
    head = ["plan", "by", "ms a chunk", "outside engines", "MB of the GPU", "largest error of a chunk"]
    first = f"Written by `benchmarks/gpu.py` on {result['date'][:10]}: {result['gpu']}, {driver}."
    return f"# On a GPU\n\n{first}\n\n{table(head, rows, texts=2)}"


if __name__ == "__main__":
    sys.exit(main())
