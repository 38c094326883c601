"""What a batch costs over one process, and how it scales: by turns in one process, and jobs of one and two workers."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from videossm.batch import BadRow, Folder, Request, make_video, read_rows
from videossm.runtime import LoadedPlan, Plan, Rollout
from videossm.runtime.sinks import open_sink, side_by_side


def rows(plan: Plan, count: int, seconds: float) -> list[bytes]:
    examples = plan.manifest.text.examples if plan.manifest.text else ()
    found = []
    for number in range(count):
        row: dict[str, Any] = {"id": f"v{number}", "seed": number, "seconds": seconds}
        if examples:
            row["prompt"] = examples[number % len(examples)]
        found.append(json.dumps(row).encode())
    return found


def plain(loaded: LoadedPlan, request: Request, file: Path) -> float:
    """Seconds that the same video takes without anything kept."""
    stream = loaded.manifest.stream
    started = perf_counter()
    rollout = Rollout(loaded, request.prompts.get(0), request.seed)
    with open_sink(file, stream.width * stream.batch, stream.height, stream.fps) as sink:
        for chunk in rollout.play(request.chunks):
            sink.write(side_by_side(chunk.frames))
    return perf_counter() - started


def overhead(plan: Plan, pairs: int, seconds: float, scratch: Path) -> dict[str, Any]:
    """The ratio of a kept video's time to a plain one's, by turns."""
    ratios = []
    with LoadedPlan(plan, threads=1) as loaded:
        for number, (_, request) in enumerate(read_rows(rows(plan, pairs, seconds), plan)):
            assert not isinstance(request, BadRow), request
            took: dict[bool, float] = {}
            for kept in (False, True) if number % 2 else (True, False):
                started = perf_counter()
                if kept:
                    make_video(loaded, request, Folder(str(scratch / "kept")))
                    took[kept] = perf_counter() - started
                else:
                    took[kept] = plain(loaded, request, scratch / "plain.mp4")
            ratios.append(took[True] / took[False])
    return {"pairs": pairs, "ratio_median": statistics.median(ratios), "ratios": ratios}


def job(plan: str, prompts: Path, workers: int, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "videossm.batch.cli", str(prompts), "-o", str(out), "--plan", plan, "--json"]
    started = perf_counter()
    done = subprocess.run([*command, "--workers", str(workers)], stdout=subprocess.PIPE, check=True)
    wall_s = perf_counter() - started
    summary = json.loads(done.stdout)
    made_s = sum(row["wall_s"] for row in summary["rows"]) / workers
    factor = summary["seconds"] / wall_s
    return {"workers": workers, "wall_s": wall_s, "in_videos_s": made_s, "realtime_factor": factor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each video")
    parser.add_argument("--pairs", type=int, default=6, help="of videos by turns, for the overhead")
    parser.add_argument("--json", type=Path, default=Path("out/batch.json"))
    given = parser.parse_args()
    plan = Plan.open(given.plan)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        result: dict[str, Any] = {"plan": plan.name, "rows": given.rows, "seconds": given.seconds}
        result["overhead"] = overhead(plan, given.pairs, given.seconds, scratch)
        prompts = scratch / "prompts.jsonl"
        prompts.write_bytes(b"\n".join(rows(plan, given.rows, given.seconds)))
        result["jobs"] = [job(given.plan, prompts, workers, scratch / f"out{workers}") for workers in (1, 2)]
    given.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
