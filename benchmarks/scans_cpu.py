"""The scans on the CPU, beside ONNX Runtime in the same run: `python benchmarks/scans_cpu.py FOLDER`.

FOLDER: build/plugins, where `make plugins` puts libvideossm_scans_cpu and libvideossm_onnxruntime. The memory engine of
a plan is timed by lowering. The gated delta rule takes turns with ONNX Runtime's `com.microsoft.LinearAttention`, call
by call with the same number of threads, after their results were compared. For the selective scan ONNX Runtime has no
operator: its time stands alone. Writes Markdown and JSON.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import memory_engine
import numpy as np
import onnxruntime
from machine import add_outputs, introduction, measured_on, table, write
from numpy.typing import NDArray
from onnx import TensorProto, helper

from videossm.plugins_trt import GatedDeltaParams, ScanLibrary, SelectiveScanParams
from videossm.runtime.backends import NATIVE_LIBRARY, NATIVE_VARIABLE
from videossm.runtime.backends.session import session_options

Arrays = dict[str, NDArray[Any]]

ERROR = 1e-4  # relative: above, the two do not compute the same
PAUSE_S = 0.1  # between calls: threads that still wait for more work would take the other's cores
GATED_SHAPES = {  # tokens, heads, key and value dimension
    "one frame of videossm-1.3b": (1560, 12, 128),
    "a chunk of videossm-1.3b": (4680, 12, 128),
    "a chunk of shapes": (192, 6, 32),
}
BAR = {"tokens": 1560, "heads": 12, "dim": 128}  # where ours is to be faster than ONNX Runtime's operator
GATED_FIGURES = {
    "ours_without_output_ms": "state only",
    "ours_ms": "ours",
    "onnxruntime_ms": "ONNX Runtime",
    "speedup": "speedup",
    "speedup_of_fastest": "of the fastest calls",
}
MEMORIES = {  # layers, tokens, heads, dimension
    "shapes": (6, 192, 6, 32),
    "two layers of videossm-1.3b": (2, 4680, 12, 128),
}
OVER_NATIVE = [f"{name} / native" for name in memory_engine.LOWERINGS[1:]]
SELECTIVE_SHAPES = {  # channels, tokens, states
    "Mamba of width 1536": (3072, 1560, 16),
    "long": (256, 16384, 16),
    "many states": (256, 1560, 64),
    "a token": (8192, 1, 16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}), help=f"1 and {cores}")
    parser.add_argument("--calls", type=int, default=30, help="of each, timed; 30")
    add_outputs(parser)
    args = parser.parse_args()
    library = ScanLibrary(args.folder / "libvideossm_scans_cpu.so")
    os.environ[NATIVE_VARIABLE] = str(args.folder / f"{NATIVE_LIBRARY}.so")
    result = measured_on() | {"calls": args.calls, "memory": [], "gated_delta": [], "selective_scan": []}
    for threads in args.threads:
        os.environ["VIDEOSSM_THREADS"] = str(threads)
        for name, engine in MEMORIES.items():
            figures = memory(*engine, threads, args.calls)
            result["memory"].append({"name": name, "threads": threads, **figures})
        for name, sizes in GATED_SHAPES.items():
            figures = gated_delta(library, *sizes, threads, args.calls)
            result["gated_delta"].append({"name": name, "threads": threads, **figures})
        for name, sizes in SELECTIVE_SHAPES.items():
            figures = selective_scan(library, *sizes, args.calls)
            result["selective_scan"].append({"name": name, "threads": threads, **figures})
    write(result, markdown(result), args.out, args.json_out)


def memory(layers: int, tokens: int, heads: int, dim: int, threads: int, calls: int) -> dict[str, Any]:
    """Medians of the lowerings, and what `native` gains over each of the others."""
    runs = memory_engine.runs(layers, tokens, heads, dim, threads)
    results = {name: run() for name, run in runs.items()}
    for name, result in results.items():
        for actual, expected in zip(result, results["contrib"], strict=True):
            require_same(name, actual, expected)
    times = clocked(runs, calls)
    gains = {f"over_{name}": times[f"{name}_ms"] / times["native_ms"] for name in memory_engine.LOWERINGS}
    return {"layers": layers, "tokens": tokens, "heads": heads, "dim": dim, **times, **gains}


def gated_delta(library: ScanLibrary, tokens: int, heads: int, dim: int, threads: int, calls: int) -> dict[str, Any]:
    """Medians of ours, ours without an output, and ONNX Runtime's."""
    noise = np.random.default_rng(0)
    rows, gates = (1, tokens, heads, dim), (1, tokens, heads)
    query, key, value = (noise.standard_normal(rows, np.float32) for _ in range(3))
    inputs = {
        "query": query,
        "key": key / np.linalg.norm(key, axis=-1, keepdims=True),
        "value": value,
        "decay": -0.1 * noise.random(gates, np.float32),
        "beta": noise.random(gates, np.float32),
        "state": noise.standard_normal((1, heads, dim, dim), np.float32),
    }
    session = linear_attention(tokens, heads, dim, threads)
    packed = {name: x.reshape(1, tokens, -1) if x.shape == rows else x for name, x in inputs.items()}
    output, state = np.empty_like(value), np.empty_like(inputs["state"])
    tensors = {**inputs, "output": output, "last_state": state}
    sizes = {"batch": 1, "tokens": tokens, "heads": heads, "key_dim": dim, "value_dim": dim, "scale": 1.0}
    params = GatedDeltaParams(**sizes, **addresses(tensors))
    without_output = GatedDeltaParams(**sizes, **addresses(tensors))
    without_output.output = None
    workspace = np.empty(library.workspace_bytes(params), np.uint8)
    for each in (params, without_output):
        each.workspace, each.workspace_bytes = workspace.ctypes.data, workspace.nbytes

    def ours() -> None:
        library.run(params)

    def ours_without_output() -> None:
        library.run(without_output)

    def theirs() -> list[NDArray[Any]]:
        return session.run(None, packed)

    ours()
    errors = [require_same("results", a.ravel(), b.ravel()) for a, b in zip((output, state), theirs(), strict=True)]
    runs = {"ours": ours, "ours_without_output": ours_without_output, "onnxruntime": theirs}
    times = clocked(runs, calls)
    ratios = {
        "speedup": times["onnxruntime_ms"] / times["ours_ms"],
        "speedup_of_fastest": times["onnxruntime_min_ms"] / times["ours_min_ms"],
    }
    return {"tokens": tokens, "heads": heads, "dim": dim, **times, **ratios, "difference": max(errors)}


def linear_attention(tokens: int, heads: int, dim: int, threads: int) -> onnxruntime.InferenceSession:
    """A graph of the one node, with the inputs' names as `ScanLibrary` has them."""
    rows, state = [1, tokens, heads * dim], [1, heads, dim, dim]
    shapes = {"query": rows, "key": rows, "value": rows, "state": state}
    shapes |= {"decay": [1, tokens, heads], "beta": [1, tokens, heads]}
    node = helper.make_node(
        "LinearAttention",
        list(shapes),
        ["output", "last_state"],
        domain="com.microsoft",
        update_rule="gated_delta",
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=1.0,
    )
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    outputs = [
        helper.make_tensor_value_info("output", TensorProto.FLOAT, rows),
        helper.make_tensor_value_info("last_state", TensorProto.FLOAT, state),
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "linear_attention", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = session_options("fp32", threads)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def selective_scan(library: ScanLibrary, channels: int, tokens: int, states: int, calls: int) -> dict[str, Any]:
    noise = np.random.default_rng(0)
    rows, columns = (1, channels, tokens), (1, states, tokens)
    inputs = {name: noise.standard_normal(rows, np.float32) for name in ("u", "delta", "z")}
    inputs |= {name: noise.standard_normal(columns, np.float32) for name in ("B", "C")}
    inputs["A"] = -np.tile(np.arange(1, states + 1, dtype=np.float32), (channels, 1))
    inputs["state"] = noise.standard_normal((1, channels, states), np.float32)
    inputs |= {name: noise.standard_normal(channels, np.float32) for name in ("D", "delta_bias")}
    y, last = np.empty_like(inputs["u"]), np.empty_like(inputs["state"])
    tensors = {**inputs, "y": y, "last_state": last}
    params = SelectiveScanParams(1, channels, tokens, states, delta_softplus=1, **addresses(tensors))
    workspace = np.empty(library.workspace_bytes(params), np.uint8)
    params.workspace, params.workspace_bytes = workspace.ctypes.data, workspace.nbytes
    times = clocked({"ours": lambda: library.run(params)}, calls)
    updates = channels * tokens * states / (times["ours_ms"] * 1e6)
    return {"channels": channels, "tokens": tokens, "states": states, **times, "updates_per_ns": updates}


def addresses(tensors: Arrays) -> dict[str, int]:
    return {name: tensor.ctypes.data for name, tensor in tensors.items()}


def clocked(runs: Mapping[str, Callable[[], object]], calls: int) -> dict[str, float]:
    """Milliseconds of each, which take turns: the median as `<name>_ms`, the least as `<name>_min_ms`."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(calls + 2):
        for name, run in runs.items():
            sleep(PAUSE_S)
            start = perf_counter()
            run()
            if turn >= 2:
                times[name].append(1000 * (perf_counter() - start))
    medians = {f"{name}_ms": float(np.median(taken)) for name, taken in times.items()}
    return medians | {f"{name}_min_ms": min(taken) for name, taken in times.items()}


def require_same(what: str, actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """The relative error, which is small."""
    error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
    if error > ERROR:
        raise SystemExit(f"{what}: got a relative difference of {error:.1e}, expected at most {ERROR:.0e}")
    return error


def gated_text(rows: list[dict[str, Any]]) -> str:
    """What the columns of the gated delta rule are, its bar, and how this run stands to it."""
    speedups = {row["threads"]: row["speedup"] for row in rows if BAR.items() <= row.items()}
    found = ", ".join(
        f"{speedup:.2f} with {threads} thread{'s' if threads > 1 else ''}" for threads, speedup in speedups.items()
    )
    verdict = "met" if all(speedup > 1 for speedup in speedups.values()) else "missed"
    return (
        "`ours` writes the outputs and the final state, as ONNX Runtime's `com.microsoft.LinearAttention` does, and "
        "`state only` the final state alone. `speedup` is ONNX Runtime's median over that of `ours`, `of the fastest "
        "calls` the same of each one's fastest call, which other work on the machine disturbs least. The two take "
        "turns, call by call, with the same number of threads.\n\n"
        "The bar: a speedup above 1 at {tokens} tokens, {heads} heads of {dim}. ".format(**BAR)
        + f"It is {verdict}: {found}."
    )


def markdown(result: dict[str, Any]) -> str:
    gated = [
        [
            f"{row['name']}: {row['tokens']} tokens, {row['heads']} heads of {row['dim']}",
            str(row["threads"]),
            *(f"{row[name]:.2f}" for name in GATED_FIGURES),
        ]
        for row in result["gated_delta"]
    ]
    memories = [
        [
            f"{row['name']}: {row['layers']} layers, {row['tokens']} tokens, {row['heads']} heads of {row['dim']}",
            str(row["threads"]),
            *(f"{row[f'{name}_ms']:.2f}" for name in memory_engine.LOWERINGS),
            *(f"{row[f'over_{name}']:.2f}" for name in memory_engine.LOWERINGS[1:]),
        ]
        for row in result["memory"]
    ]
    selective = [
        [
            f"{row['name']}: {row['channels']} channels, {row['tokens']} tokens, {row['states']} states",
            *(str(row["threads"]), f"{row['ours_ms']:.2f}", f"{row['updates_per_ns']:.2f}"),
        ]
        for row in result["selective_scan"]
    ]
    return "\n\n".join(
        [
            "# The scans on a CPU",
            f"{introduction(result, 'scans_cpu.py')} fp32, median of {result['calls']} calls.",
            "The memory engine, which takes a chunk into the memories of all layers, by the plan's lowering, in turn. "
            "`native` is [this project's library](plugins.md#onnx-runtime-on-a-cpu).",
            table(["memory engine, ms", "threads", *memory_engine.LOWERINGS, *OVER_NATIVE], memories),
            gated_text(result["gated_delta"]),
            table(["gated delta rule, ms", "threads", *GATED_FIGURES.values()], gated),
            table(["selective scan", "threads", "ms", "state updates a ns"], selective),
        ]
    )


if __name__ == "__main__":
    main()
