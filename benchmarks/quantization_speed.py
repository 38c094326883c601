"""What int8 saves on a CPU, beside fp32 in the same run: `python benchmarks/quantization_speed.py`.

wide: the paper's width, two layers, random weights. The fp32 plan and the int8 plan take turns, chunk by chunk: whole
chunks by the clock, then the engine of the passes by ONNX Runtime's profiler. The same once more with attention's
products in int8 as well. The full picture takes much memory for attention's scores, which is asked for beforehand;
--height and --width make it smaller. shapes: the trained model, in the same way. calibration: what
`videossm-calibrate` takes, in a process of its own. Writes Markdown and JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from machine import add_outputs, measured_on, write
from onnx import helper
from profiling import KINDS, LINEARS, ProfiledBackend, by_kind, by_layer, by_operator
from quantization_speed_page import INT8, INT8_ATTENTION, markdown

from videossm.calib.calibrate import calibrate, recorded_chunks
from videossm.calib.calibration import Calibration, Settings
from videossm.calib.contender import batch_of
from videossm.calib.memory import available_bytes
from videossm.calib.options import CHUNKS, SEED, SIZE
from videossm.calib.plans import candidates, quantised_engines, write_quantized
from videossm.calib.prompts import default_prompts
from videossm.runtime import Plan, Rollout
from videossm.runtime.backends import Backend
from videossm.runtime.cli import progress

PARTS = ("wide", "shapes", "calibration")
SIZES = ("height", "width", "chunk_frames", "window_frames", "sink_frames")
WIDE = ("videossm-1.3b", "--random-weights", "--set", "layers=2")
WIDE_WARM, SHAPES_WARM = 2, 6  # chunks before the clock starts; those of shapes fill the window
SHAPES_CHUNKS = 60
PROFILED = {"wide": (1, 2), "shapes": (6, 20)}  # chunks under the profiler: to warm up, and those that count
SCORES = 4  # matrices of attention's scores that the two plans hold: one in fp32, up to three where it is int8
CALIBRATION = {"rollouts": SIZE, "chunks": CHUNKS}
BARS: tuple[tuple[str, str, str, float], ...] = (  # part, figure, "at least" or "at most", bar
    ("wide", "linears_speedup", "at least", 3.0),
    ("wide", "chunk_speedup", "at least", 1.2),
    ("wide", "weights_ratio", "at most", 0.27),
    ("shapes", "chunk_speedup", "at least", 1.0),
    ("shapes", "weights_ratio", "at most", 0.27),
    ("calibration", "seconds", "at most", 300.0),
    ("calibration", "peak_mb", "at most", 2000.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="some of the parts")
    parser.add_argument("--plan", type=Path, help="wide: an fp32 plan in place of a new one")
    for size in SIZES:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, help="wide: in place of the preset's")
    parser.add_argument("--chunks", type=int, default=3, help="wide: chunks that are timed")
    parser.add_argument("--shapes-plan", type=Path, help="shapes, calibration: an fp32 plan in place of a new one")
    add_outputs(parser)
    args = parser.parse_args()
    result = measured_on()
    with tempfile.TemporaryDirectory(prefix="videossm-") as name:
        folder = Path(name)
        if "wide" in args.only:
            given = [(size, getattr(args, size)) for size in SIZES]
            sizes = [f"--set={size}={value}" for size, value in given if value is not None]
            wide = Plan.open(args.plan) if args.plan else exported(folder / "wide.plan", *WIDE, *sizes)
            check_memory(wide)
        if {"shapes", "calibration"} & set(args.only):
            shapes = Plan.open(args.shapes_plan) if args.shapes_plan else exported(folder / "shapes.plan", "shapes")
        if "calibration" in args.only:  # before any measuring: a new process takes over the peak memory of this one
            result["calibration"] = calibration_cost(shapes, folder / "calibration.json")
        if "shapes" in args.only:
            result["shapes"] = measure(shapes, "shapes", SHAPES_WARM, SHAPES_CHUNKS)
        if "wide" in args.only:
            result["wide"] = measure(wide, "wide", WIDE_WARM, args.chunks)
    result["bars"] = [judged(result, *bar) for bar in BARS if bar[0] in result]
    write(result, markdown(result), args.out, args.json_out)


def exported(out: Path, *options: str) -> Plan:
    """A new fp32 plan, by a process of its own: PyTorch would stay in this one."""
    command = [sys.executable, "-m", "videossm.export.cli", *options, "--no-verify", "-o", str(out)]
    subprocess.run(command, check=True)
    return Plan.open(out)


def measure(plan: Plan, part: str, warm: int, chunks: int) -> dict[str, Any]:
    """fp32 against int8, without attention and with it."""
    linears, products, _ = candidates(plan)
    settings = Settings(
        method="max",  # the scales do not change the time
        prompts=default_prompts(plan, 1, SEED),
        seeds=(SEED,),
        chunks=2,
        data="rollouts",
        smoothquant=None,
        quantize_attention=True,
    )
    with progress(recorded_chunks(settings), "chunk") as bar:
        calibration = calibrate(plan, "int8", settings, bar.update)
    names = {linear.name for linear in linears}
    chosen = {INT8: names, INT8_ATTENTION: names | {product.name for product in products}}
    compared = {}
    for label, layers in chosen.items():
        with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
            other = lowered(plan, calibration, layers, Path(folder))
            compared[label] = {
                "chunk": clocked(plan, other, warm, chunks),
                "passes": profiled(plan, other, *PROFILED[part]),
                "sizes": sizes_of(plan, other, {linear.weight for linear in linears}),
            }
        gc.collect()
    return {"plan": geometry(plan), "chunks": chunks, "profiled_chunks": PROFILED[part][1], **compared}


def lowered(plan: Plan, calibration: Calibration, chosen: Collection[str], folder: Path) -> Plan:
    return write_quantized(plan, calibration, chosen, folder)


def rollout(plan: Plan, backend: Backend | None = None) -> Rollout:
    prompts = default_prompts(plan, 1, SEED)
    return Rollout(plan, batch_of(prompts[0] if prompts else None, plan), backend=backend)


def clocked(a: Plan, b: Plan, warm: int, chunks: int) -> dict[str, Any]:
    """Milliseconds a chunk of two plans that take turns."""
    rollouts = rollout(a), rollout(b)
    times: tuple[list[float], list[float]] = ([], [])
    with progress(warm + chunks, "pair") as bar:
        for _ in range(warm + chunks):
            for stream, taken in zip(rollouts, times, strict=True):
                start = perf_counter()
                next(stream)
                taken.append(1000 * (perf_counter() - start))
            bar.update()
    first, second = (np.array(taken[warm:]) for taken in times)
    sides = {"fp32": first, "int8": second}
    return {
        **{name: {"min_ms": float(ms.min()), "median_ms": float(np.median(ms))} for name, ms in sides.items()},
        "speedup": float(np.median(first) / np.median(second)),
        "speedup_of_pairs": median((first / second).tolist()),
    }


def profiled(a: Plan, b: Plan, warm: int, chunks: int) -> dict[str, Any]:
    """Milliseconds a chunk inside the passes' engine of two plans that take turns, by part, layer and operator."""
    linears, products, _ = candidates(a)
    (engine,) = a.manifest.pass_engines
    linears = [linear for linear in linears if linear.engine == engine]
    products = [product for product in products if product.engine == engine]
    with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
        backends = []
        for index, plan in enumerate((a, b)):
            Path(folder, str(index)).mkdir()
            backends.append(ProfiledBackend(engine, plan.manifest.precision, Path(folder, str(index))))
        rollouts = [rollout(plan, backend) for plan, backend in zip((a, b), backends, strict=True)]
        with progress(warm + chunks, "pair") as bar:
            for _ in range(warm + chunks):
                for stream in rollouts:
                    next(stream)
                bar.update()
        runs = len(a.manifest.passes)
        fp32, int8 = (backend.chunk_times(linears, products, runs, chunks) for backend in backends)
    return {
        "parts": pairs(by_kind, fp32, int8),
        "layers": pairs(by_layer, fp32, int8),
        "operators": {kind: pairs(partial(by_operator, kind=kind), fp32, int8) for kind in KINDS[:2]},
    }


def pairs(figures: Callable[[Any], dict[str, float]], fp32: Any, int8: Any) -> dict[str, dict[str, float]]:
    first, second = figures(fp32), figures(int8)
    names = [*first, *(name for name in second if name not in first)]
    return {name: {"fp32_ms": first.get(name, 0.0), "int8_ms": second.get(name, 0.0)} for name in names}


def sizes_of(a: Plan, b: Plan, quantised: Collection[str]) -> dict[str, Any]:
    """Bytes of engines' files, and of the `quantised` weights: what plan B has in their place, scales included."""
    before, after = weight_bytes(a), weight_bytes(b)
    fp32 = sum(size for name, size in before.items() if name[1] in quantised)
    int8 = sum(after.values()) - (sum(before.values()) - fp32)
    files = {
        f"files of {engine}": {"fp32_bytes": file_bytes(a, engine), "int8_bytes": file_bytes(b, engine)}
        for engine in quantised_engines(a.manifest)
    }
    return {"weights": {"fp32_bytes": fp32, "int8_bytes": int8, "ratio": int8 / fp32}, "files": files}


def file_bytes(plan: Plan, engine: str) -> int:
    """The graph, with its weights where they lie beside it."""
    return sum(file.size_bytes for name, file in plan.manifest.files.items() if name.startswith(f"{engine}.onnx"))


def weight_bytes(plan: Plan) -> dict[tuple[str, str], int]:
    """Of every initializer of the engines that are quantised, by engine and name."""
    sizes = {}
    for engine, spec in plan.manifest.engines.items():
        if engine in quantised_engines(plan.manifest):
            for tensor in onnx.load(plan.path / spec.file, load_external_data=False).graph.initializer:
                item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
                sizes[engine, tensor.name] = item * int(np.prod(tensor.dims))
    return sizes


def calibration_cost(plan: Plan, out: Path) -> dict[str, Any]:
    """Wall time and peak memory of `videossm-calibrate` as a user runs it."""
    command = [sys.executable, "-m", "videossm.calib.cli.calibrate", str(plan.path), "-o", str(out), "--json"]
    command += [f"--calibration-size={CALIBRATION['rollouts']}", f"--calibration-chunks={CALIBRATION['chunks']}"]
    start = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None, "a pipe"
    report = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    seconds = perf_counter() - start
    return {**CALIBRATION, "tensors": report["tensors"], "seconds": seconds, "peak_mb": 1024 * usage.ru_maxrss / 1e6}


def geometry(plan: Plan) -> dict[str, Any]:
    """What was run; attention multiplies `tokens` queries by `keys` keys."""
    stream, window, model = plan.manifest.stream, plan.manifest.window, plan.manifest.model
    tokens, keys, heads = attention_shape(plan)
    assert window is not None, "of VideoSSM"
    return {
        "name": plan.name,
        "layers": model["transformer"]["layers"],
        "height": stream.height,
        "width": stream.width,
        "chunk_frames": window.chunk_frames,
        "window_frames": window.chunks * window.chunk_frames,
        "passes": len(plan.manifest.passes),
        "tokens": tokens,
        "keys": tokens + keys,
        "heads": heads,
    }


def attention_shape(plan: Plan) -> tuple[int, int, int]:
    """Tokens of a chunk, tokens of the window, heads: of VideoSSM, whose keys are states [B, T, D] of rings."""
    ring = next(state for state in plan.manifest.states if state.name.endswith(".key") and state.kind == "ring")
    return ring.shape[1], plan.manifest.whole_shape(ring)[1], plan.manifest.model["transformer"]["heads"]


def check_memory(plan: Plan) -> None:
    """Ends the script where attention's scores would not fit."""
    tokens, window, heads = attention_shape(plan)
    scores = 4 * heads * tokens * (tokens + window)
    needed = SCORES * scores + 3 * sum(file.size_bytes for file in plan.manifest.files.values())
    free = available_bytes()
    if free is not None and free < needed:
        sys.exit(
            f"memory: got {free / 1e9:.1f} GB free, expected about {needed / 1e9:.1f} GB; choose a smaller --height "
            "and --width, or fewer --chunk-frames and --window-frames"
        )


def judged(result: dict[str, Any], part: str, figure: str, side: str, bar: float) -> dict[str, Any]:
    """A bar with what was measured."""
    measured: float
    if part == "calibration":
        measured = result[part][figure]
    else:
        found = result[part][INT8]
        linears = found["passes"]["parts"][LINEARS]
        measured = {
            "linears_speedup": linears["fp32_ms"] / linears["int8_ms"],
            "chunk_speedup": found["chunk"]["speedup"],
            "weights_ratio": found["sizes"]["weights"]["ratio"],
        }[figure]
    met = measured >= bar if side == "at least" else measured <= bar
    return {"part": part, "figure": figure, "measured": measured, "side": side, "bar": bar, "met": met}


if __name__ == "__main__":
    main()
