"""What a chunk costs: `python benchmarks/bench.py engine.plan` (or `make bench`).

Three rollouts of one model take turns, chunk by chunk: the plan, and its program over the modules that it was exported
from, in PyTorch eager and with the modules of the passes compiled. Then the plan alone runs for 600 chunks, the last of
them in turns with early ones, for growth of time and memory, and in a fresh process, for the time to the first frame.
Writes a Markdown table and JSON with the date and the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from videossm.export.torch_backend import TorchBackend
from videossm.export.verify import reference_chunks, verification_prompts
from videossm.models.family import Deployment, find_family
from videossm.runtime import Plan, Rollout
from videossm.runtime.cli.measure import resident_bytes
from videossm.runtime.processor import probe_processor

EARLY, LATE = (20, 120), (500, 600)  # chunks whose times are compared, in turns: machines drift
WARM_CHUNKS = 3  # after those that fill the window
SETTLE_S = 0.05  # before each chunk: PyTorch's threads spin for a while after theirs, on the cores of whoever is next
RESIDENT_FROM = 100  # chunk at which resident memory is first read
STARTS = 5  # fresh processes for the time to the first frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--checkpoint", help="preset or file that the plan was exported from; the preset of its name")
    parser.add_argument("--family", help="of the model, as for videossm-export")
    parser.add_argument("--chunks", type=int, default=40, help="chunks of the side-by-side comparison")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes to start")
    parser.add_argument("--out", type=Path, help="Markdown; stdout if not given")
    parser.add_argument("--json", type=Path, dest="json_out")
    args = parser.parse_args()
    torch.set_num_threads(physical_cores())
    plan = Plan.open(args.plan)
    checkpoint = args.checkpoint or plan.name
    deployment = find_family(checkpoint, args.family).load(checkpoint, {}, False)
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "plan": {"name": plan.name, "precision": plan.manifest.precision, "lowering": plan.manifest.lowering},
        "side_by_side": side_by_side(plan, deployment, args.chunks, not args.no_compile),
        "growth": growth(plan),
        "start": start(args.plan),
    }
    text = markdown(result)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    if args.json_out:
        args.json_out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def side_by_side(plan: Plan, deployment: Deployment, chunks: int, compiled: bool) -> dict[str, Any]:
    """Milliseconds a chunk of each rollout in its steady state, and their ratios, taken chunk by chunk."""
    prompts, seeds = verification_prompts(plan), list(range(plan.manifest.stream.batch))
    rollouts: dict[str, Iterator[Any]] = {"eager": reference_chunks(plan, deployment, prompts, seeds)}
    if compiled:
        backend = TorchBackend(with_compiled_passes(deployment))
        rollouts["compile"] = Rollout(plan, prompts or None, seeds, backend=backend)
    rollout = rollouts["plan"] = Rollout(plan, prompts or None, seeds)
    window = plan.manifest.window
    for each in rollouts.values():  # fills the window, compiles what is to be compiled
        for _ in range(WARM_CHUNKS + (window.chunks if window else 0)):
            next(each)
    engines_before = sum(rollout.timings.values())
    times: dict[str, list[float]] = {name: [] for name in rollouts}
    for _ in tqdm(range(chunks), unit="chunk", desc="side by side", disable=None):
        for name, each in rollouts.items():
            time.sleep(SETTLE_S)
            begun = time.perf_counter()
            next(each)
            times[name].append(time.perf_counter() - begun)
    inside, stream = sum(rollout.timings.values()) - engines_before, plan.manifest.stream
    seconds = {name: np.array(values) for name, values in times.items()}
    return {
        "chunks": chunks,
        "ms_per_chunk": {name: quartiles(1000 * values) for name, values in seconds.items()},
        "plan_to": {name: quartiles(seconds["plan"] / seconds[name]) for name in seconds if name != "plan"},
        "outside_engines_share": 1 - inside / seconds["plan"].sum(),
        "realtime_factor": stream.later_frames / stream.fps / float(np.median(seconds["plan"])),
    }


def with_compiled_passes(deployment: Deployment) -> Deployment:
    """The same, the modules that passes run compiled by PyTorch."""
    engines = list(deployment.engines)
    for index, engine in enumerate(engines):
        if engine.when == "pass":
            engines[index] = replace(engine, module=cast(nn.Module, torch.compile(engine.module, dynamic=False)))
    return replace(deployment, engines=engines)


def growth(plan: Plan) -> dict[str, Any]:
    """Chunk time late in a rollout against early in another, taken in turns, and resident memory on the way."""
    late, early = (Rollout(plan, verification_prompts(plan) or None) for _ in range(2))
    for _ in range(EARLY[0]):
        next(early)
    resident = []
    for _ in tqdm(range(LATE[0]), unit="chunk", desc="growth", disable=None):
        next(late)
        resident.append(resident_bytes())
    times: dict[str, list[float]] = {"early": [], "late": []}
    for _ in tqdm(range(LATE[1] - LATE[0]), unit="pair", desc="early and late", disable=None):
        for name, rollout in (("early", early), ("late", late)):
            begun = time.perf_counter()
            next(rollout)
            times[name].append(time.perf_counter() - begun)
    seconds = {name: np.array(values) for name, values in times.items()}
    return {
        "ms_per_chunk": {name: quartiles(1000 * values) for name, values in seconds.items()},
        "late_to_early": quartiles(seconds["late"] / seconds["early"]),
        "resident_bytes": resident_bytes(),
        "resident_growth_bytes": resident_bytes() - resident[RESIDENT_FROM],
    }


def start(plan: Path) -> dict[str, Any]:
    """Seconds from the start of a fresh `videossm-run` to its first chunk in the file."""
    seconds = []
    prompt = [word for text in verification_prompts(Plan.open(plan))[:1] for word in ("--prompt", text)]
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as folder:
            command = ["-m", "videossm.runtime.cli.run", str(plan), *prompt]
            command += ["--chunks", "1", "-o", f"{folder}/out.mp4", "--json"]
            done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, check=True)
        seconds.append(json.loads(done.stdout)["time_to_first_frame_s"])
    return {"time_to_first_frame_s": quartiles(np.array(seconds))}


def quartiles(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"p25": float(low), "median": float(median), "p75": float(high)}


def machine() -> dict[str, Any]:
    """What was measured on, without its name."""
    processor, python = probe_processor(), platform.python_version()
    cpu = {"cpu": processor.name, "features": list(processor.features), "cores": physical_cores()}
    return {**cpu, "torch": torch.__version__, "python": python}


def physical_cores() -> int:
    import psutil

    return psutil.cpu_count(logical=False) or 1


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/benchmarks.md."""
    side, grown, machine_, plan = result["side_by_side"], result["growth"], result["machine"], result["plan"]
    first_frame_s = result["start"]["time_to_first_frame_s"]["median"]
    names = {"eager": "PyTorch eager", "compile": "PyTorch, passes compiled", "plan": "plan, ONNX Runtime"}
    rows = [
        f"| {names[name]} | {ms['median']:.1f} | {ms['p25']:.1f} to {ms['p75']:.1f} | "
        + (f"{side['plan_to'][name]['median']:.2f} |" if name in side["plan_to"] else "1 |")
        for name, ms in side["ms_per_chunk"].items()
    ]
    return f"""# Benchmarks

Written by `make bench` on {result["date"][:10]}: {machine_["cpu"]}, {machine_["cores"]} cores,
{" ".join(machine_["features"])}, torch {machine_["torch"]},
plan `{plan["name"]}` in {plan["precision"]}, lowering `{plan["lowering"]}`.

The three take turns chunk by chunk, {side["chunks"]} chunks each, window full, with a pause before
each chunk in which the threads of the one before fall asleep.

| | ms a chunk, median | quartiles | plan / this, median of pairs |
|---|---|---|---|
{chr(10).join(rows)}

| | |
|---|---|
| wall time outside engines | {100 * side["outside_engines_share"]:.2f}% |
| real time (1 is as fast as the video plays) | {side["realtime_factor"]:.1f} |
| chunks {LATE[0]}-{LATE[1]} to chunks {EARLY[0]}-{EARLY[1]}, median of pairs | {grown["late_to_early"]["median"]:.3f} |
| resident memory, growth from chunk {RESIDENT_FROM} to {LATE[1]} | {grown["resident_growth_bytes"] / 1e6:.2f} MB |
| resident memory, this process with PyTorch in it | {grown["resident_bytes"] / 1e6:.0f} MB |
| first frame after the start of `videossm-run`, median of {STARTS} | {first_frame_s:.2f} s |
"""


if __name__ == "__main__":
    main()
