"""All that a first GPU is to answer, in the order of its worth: `python benchmarks/gpu_session.py --out FOLDER`.

Each part runs in a process of its own and writes FOLDER/PART.json after every item. A session that is cut, by its end
or by a fault of the device, goes on where it was when the same command is given again; `--budget-s` ends it in time,
between two items. At its end, and for what is there at any time, it writes FOLDER/session.md.

`--dry-run` lists the parts and what this machine lacks. `--make` writes the plans to be measured, which takes the
exporter and TensorRT-RTX, and no GPU: do that before, on another machine. The scans need nvcc, CMake and PyTorch for
CUDA; `pip install --no-deps -e .` beside it is enough, with pydantic, tqdm and safetensors.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import gpu_plans
import gpu_scans
from gpu_scans_page import Bar, judge, line, markdown
from gpu_session_parts import Part, PartFile, Row, run_part
from machine import table
from scan_checks import TOOL_TIMEOUT_S, all_cases
from scan_floors import H200, Rates
from scan_speed import TIMING

from videossm.runtime.driver import probe_driver

POLL_S = 0.5
SANITIZER_S = TOOL_TIMEOUT_S + 30
DRY_RUN_MULTIPROCESSORS = 132  # of an H200


def parts(plans: Path, out: Path) -> list[Part]:
    """By their worth. `plans`: the folder of --make."""
    scans = gpu_scans.why_not_here
    return [
        Part("device", "Which GPU is it, and which rates does it reach?", 10, gpu_scans.device),
        Part("figures", "How long does a chunk take, by plan?", 300, partial(gpu_plans.figures, plans), 300),
        Part("build", "Do the scans compile, without spills?", 60, gpu_scans.compilation, 600, scans),
        Part("checks", "Are the scans right, whole, split and in place?", 60, gpu_scans.checks, why_not=scans),
        Part("errors", "Are the plans right, beside those on the CPU?", 180, partial(gpu_plans.errors, plans), 300),
        Part("speed", "How fast are the scans beside others?", 60, partial(gpu_scans.speed, True, out), why_not=scans),
        Part(
            "sanitizer", "Does compute-sanitizer find anything?", 240, gpu_scans.sanitizers, TOOL_TIMEOUT_S + 30, scans
        ),
        Part(
            "grid",
            "How fast are the scans at all other shapes?",
            120,
            partial(gpu_scans.speed, False, out),
            why_not=scans,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu-session"), help="folder of the results")
    parser.add_argument("--plans", type=Path, default=Path("out/gpu-plans"), help="folder of the plans")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts; all without it")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="begins no item after so many seconds")
    parser.add_argument("--make", action="store_true", help="make the plans, measure nothing")
    parser.add_argument("--dry-run", action="store_true", help="list the parts, measure nothing")
    parser.add_argument("--child", metavar="PART", help=argparse.SUPPRESS)
    args = parser.parse_args()
    every = parts(args.plans, args.out)
    unknown = sorted(set(args.only or []) - {part.name for part in every})
    if unknown:
        parser.error(f"--only: got {unknown[0]}, expected some of {', '.join(part.name for part in every)}")
    wanted = [part for part in every if not args.only or part.name in args.only]
    if args.dry_run:
        print(listing(wanted, args.plans, args.out))
        return 0
    if args.make:
        gpu_plans.make(args.plans)
        return 0
    if args.child:
        (part,) = (part for part in every if part.name == args.child)
        run_part(part, args.out, time.perf_counter() + args.budget_s)
        return 0
    driver = probe_driver()
    if not driver.gpus:
        print(f"device: got no GPU ({driver.problem}), expected one; --dry-run needs none", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    run(wanted, args.out, args.plans, args.budget_s)
    bars = write_page(args.out)
    return 1 if any(bar["passed"] is False for bar in bars) or any_failed(every, args.out) else 0


def run(wanted: Sequence[Part], out: Path, plans: Path, budget_s: float) -> None:
    """Part after part, each in children: one that dies or hangs loses the item that it was at."""
    end = time.monotonic() + budget_s
    for part in wanted:
        if why := part.why_not():
            print(f"{part.name}: left out: {why}", file=sys.stderr)
            continue
        while not PartFile(out, part.name).complete and time.monotonic() < end:
            left = end - time.monotonic()
            command = [sys.executable, __file__, "--child", part.name, "--out", str(out), "--plans", str(plans)]
            if not run_child([*command, "--budget-s", str(left)], part, out):
                break
        file = PartFile(out, part.name)
        print(f"{part.name}: {len(file.rows)} items{'' if file.complete else ', not all'}", file=sys.stderr)


def run_child(command: Sequence[str], part: Part, out: Path) -> bool:
    """Whether another child may go on: this one died or hung at an item, which is now given up."""
    child = subprocess.Popen(command)
    began = time.time()
    file = out / f"{part.name}.json"
    while child.poll() is None:
        time.sleep(POLL_S)
        last = max(began, file.stat().st_mtime if file.exists() else 0)
        if time.time() - last > part.item_limit_s and child.poll() is None:
            child.kill()
            child.wait()
            PartFile(out, part.name).give_up(f"got no end within {part.item_limit_s:.0f} s")
            return True
    if child.returncode == 0:  # all is done, or there is no time left
        return False
    state = PartFile(out, part.name)
    was_running = state.running is not None
    state.give_up(f"its process ended with exit code {child.returncode}")
    return was_running


def listing(wanted: Sequence[Part], plans: Path, out: Path) -> str:
    rows = []
    for part in wanted:
        file = PartFile(out, part.name)
        done = "all" if file.complete else str(len(file.rows))
        rows.append([part.name, part.question, f"{part.seconds:.0f}", done])
    lines = [table(["part", "question", "about, s", "items done"], rows, texts=2), ""]
    there = {path.parent.name for path in plans.glob("*/manifest.json")}
    lacking = [name for name in gpu_plans.MADE if f"{name}.plan" not in there]
    if lacking:
        lines.append(f"plans: {plans} lacks {', '.join(lacking)}; make them with --make")
    whys = dict.fromkeys(why for part in wanted if (why := part.why_not()))
    lines += [f"here without the scans: {why}" for why in whys]
    return "\n".join(lines)


def any_failed(every: Sequence[Part], out: Path) -> bool:
    return any(row.get("passed") is False for part in every for row in PartFile(out, part.name).rows.values())


def write_page(out: Path) -> list[Bar]:
    """session.md of all that is there. Returns the bars that the scans are judged by."""
    rows = {part.name: PartFile(out, part.name).rows for part in parts(Path(), out)}
    result = scans_result(rows)
    bars = result["bars"] = judge(result)
    head = ["plan", "ms a chunk", "ms by engine", "outside engines", "MB of the GPU", "largest error of a chunk"]
    of_plans = table(head, gpu_plans.markdown_rows(rows["figures"], rows["errors"]))
    text = f"{markdown(result)}\n\n## Plans\n\n{of_plans}\n"
    (out / "session.md").write_text(text, encoding="utf-8")
    for bar in bars:
        print(line(bar), file=sys.stderr)
    return bars


def scans_result(rows: dict[str, dict[str, Row]]) -> Row:
    """What is known of the scans, as gpu_scans_page takes it: the whole grid, with times where they were measured."""
    on = rows["device"].get("rates", {})
    on = on if "rates" in on else {}
    rates = Rates(**on["rates"]) if on else H200
    timed = [row for name in ("speed", "grid") for row in rows[name].values() if "ms" in row]
    found = {(row["scan"], *_sizes(row)): row for row in timed}
    grid = {
        scan: [found.get((scan, *_sizes(row)), row) for row in of_scan]
        for scan, of_scan in gpu_scans.listed(rates).items()
    }
    peers = {scan: [gpu_scans.described(peer) for peer in of] for scan, of in gpu_scans.all_peers().items()}
    count = len(all_cases(on["multiprocessors"] if on else DRY_RUN_MULTIPROCESSORS))
    where = f"{on['device']}, driver {on['versions']['driver']}. {TIMING}" if on else "no device; nothing was measured."
    known = {"device": on["device"] if on else None, "rates": asdict(rates), "cases": count, "peers": peers}
    known |= {"checks": list(rows["checks"].values()), "sanitizer": list(rows["sanitizer"].values())}
    return {**known, "introduction": f"Written by `benchmarks/gpu_session.py`: {where}", **grid}


def _sizes(row: Row) -> tuple[object, ...]:
    return tuple(row.get(name) for name in ("tokens", "heads", "dim", "channels", "states", "dtype", "wanted"))


if __name__ == "__main__":
    sys.exit(main())
