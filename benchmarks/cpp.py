"""The C++ library beside the Python runtime on plans for the CPU: start to first frame, and a chunk, by turns.

    make cpp && .venv/bin/python benchmarks/cpp.py PLAN .. --out out/cpp.md --json out/cpp.json

A start is a new process up to the frames of its first chunk, with as many threads as there are: Python with the
runtime's imports, and examples/cpp's generate. Chunks are made in this process, with one thread each, the library's
through ctypes; their frames are compared. Figures are medians; a ratio is the median of those of neighbours, which
other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from machine import add_outputs, introduction, measured_on, table, write

from videossm.runtime import Plan, Rollout

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "builders"))  # videossm.h by ctypes is the tests'

STARTS, CHUNKS, WARM_UP = 9, 60, 10
PROMPT = "a red circle"
FIRST_FRAME = """
import sys
from videossm.runtime import Plan, Rollout
next(Rollout(Plan.open(sys.argv[1]), sys.argv[2] or None)).frames
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", metavar="PLAN", nargs="+", type=Path)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cpp", help="where `make cpp` built it")
    add_outputs(parser)
    arguments = parser.parse_args()
    result = {**measured_on(), "plans": [measured(Plan.open(path), arguments.build) for path in arguments.plans]}
    write(result, page(result), arguments.out, arguments.json_out)


def measured(plan: Plan, build: Path) -> dict[str, Any]:
    prompt = PROMPT if plan.manifest.text else ""
    name = f"{plan.name}, {plan.manifest.precision}"
    return {"plan": name, "start": starts(plan, build, prompt), "chunk": chunks(plan, build, prompt)}


def starts(plan: Plan, build: Path, prompt: str) -> dict[str, float]:
    python = [sys.executable, "-c", FIRST_FRAME, str(plan.path), prompt]
    frame_s = f"{1 / plan.manifest.stream.fps:.6f}"
    cpp = [str(build / "generate"), str(plan.path), prompt, frame_s, "/dev/null"]
    return compared(lambda: subprocess.run(python, check=True), lambda: subprocess.run(cpp, check=True), STARTS)


def chunks(plan: Plan, build: Path, prompt: str) -> dict[str, float]:
    c: Any = import_module("videossm_c")
    texts = [prompt] * plan.manifest.stream.batch if prompt else []
    mine = Rollout(plan, texts or None, 0, threads=1)
    other = c.CRollout.create(c.CPlan(c.Library(build / "libvideossm.so"), plan.path, 1), texts, [0])
    for _ in range(WARM_UP):
        assert np.array_equal(next(mine).frames, other.frames()), "the same numbers everywhere"
    return compared(lambda: next(mine).frames, other.next, CHUNKS)


def compared(python: Callable[[], object], cpp: Callable[[], object], count: int) -> dict[str, float]:
    pairs = [(seconds(python), seconds(cpp)) for _ in range(count)]
    python_s, cpp_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"python_s": python_s, "cpp_s": cpp_s, "ratio": statistics.median(b / a for a, b in pairs)}


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def page(result: dict[str, Any]) -> str:
    head = ["plan", "start to first frame, Python", "C++", "ratio", "a chunk, Python", "C++", "ratio"]
    rows = []
    for each in result["plans"]:
        start, chunk = each["start"], each["chunk"]
        times = [f"{start['python_s']:.2f} s", f"{start['cpp_s']:.3f} s", f"{start['ratio']:.2f}"]
        times += [f"{1e3 * chunk['python_s']:.2f} ms", f"{1e3 * chunk['cpp_s']:.2f} ms", f"{chunk['ratio']:.2f}"]
        rows.append([each["plan"], *times])
    return f"{introduction(result, 'cpp.py')}\n\n{table(head, rows)}"


if __name__ == "__main__":
    main()
