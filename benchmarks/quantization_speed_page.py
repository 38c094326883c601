"""The page docs/quantization-speed.md, from what `quantization_speed.py` measured."""

from __future__ import annotations

from typing import Any

from machine import introduction, table
from profiling import ATTENTION, LINEARS

INT8, INT8_ATTENTION = "int8", "int8, attention too"
LABELS = {
    "linears_speedup": "quantised linears, fp32 / int8",
    "chunk_speedup": "whole chunk, fp32 / int8",
    "weights_ratio": "weights of the quantised layers, int8 / fp32",
    "seconds": "seconds to calibrate",
    "peak_mb": "MB of memory to calibrate, at the peak",
}


def markdown(result: dict[str, Any]) -> str:
    """The page docs/quantization-speed.md."""
    rows = [
        [bar["part"], LABELS[bar["figure"]], number(bar["measured"]), f"{bar['side']} {number(bar['bar'])}", met(bar)]
        for bar in result["bars"]
    ]
    text = [
        "# Quantised plans on a CPU: time and size",
        f"{introduction(result, 'quantization_speed.py')} fp32 and int8 take turns, chunk by chunk, in one process.",
        table(["", "", "measured", "bar", "met"], rows, texts=2),
    ]
    text += [section(part, result[part]) for part in ("wide", "shapes") if part in result]
    if "calibration" in result:
        cost = result["calibration"]
        text.append(
            f"## Calibration\n\n`videossm-calibrate` on `shapes`, {cost['rollouts']} rollouts of {cost['chunks']} "
            f"chunks, {cost['tensors']} tensors: {cost['seconds']:.0f} s, "
            f"{cost['peak_mb']:.0f} MB of memory at the peak."
        )
    return "\n\n".join(text)


def section(part: str, of: dict[str, Any]) -> str:
    plan = of["plan"]
    title = f"## {plan['name']}"
    text = [
        title,
        f"{plan['height']} x {plan['width']} pixels, {plan['layers']} layers, {plan['passes']} passes a chunk; "
        f"{plan['tokens']} tokens attend to {plan['keys']}. {of['chunks']} chunks by the clock, "
        f"{of['profiled_chunks']} under the profiler, which sees the engine of the passes alone.",
        table(
            ["ms a chunk", "fp32, min", "median", "int8, min", "median", "fp32 / int8"],
            [[label, *chunk_row(of[label]["chunk"])] for label in (INT8, INT8_ATTENTION)],
        ),
    ]
    for label in (INT8, INT8_ATTENTION):
        passes = of[label]["passes"]
        kinds = [[f"**{name}**", *pair_row(pair)] for name, pair in passes["parts"].items()]
        layers = [[name, *pair_row(pair)] for name, pair in passes["layers"].items()] if label == INT8 else []
        text.append(table([f"passes, ms a chunk: {label}", "fp32", "int8", "fp32 / int8"], kinds + layers))
    for kind, label in ((LINEARS, INT8), (ATTENTION, INT8_ATTENTION)):
        operators = [[name, *pair_row(pair)] for name, pair in of[label]["passes"]["operators"][kind].items()]
        text.append(table([f"operators: {kind}, {label}", "fp32", "int8", "fp32 / int8"], operators))
    sizes = of[INT8]["sizes"]
    files = {"weights of the quantised layers, with their scales": sizes["weights"], **sizes["files"]}
    rows = [
        [name, f"{pair['fp32_bytes'] / 1e6:.2f}", f"{pair['int8_bytes'] / 1e6:.2f}", ratio_of(pair)]
        for name, pair in files.items()
    ]
    text.append(table(["MB", "fp32", "int8", "int8 / fp32"], rows))
    return "\n\n".join(text)


def chunk_row(chunk: dict[str, Any]) -> list[str]:
    sides = [figure for side in ("fp32", "int8") for figure in chunk[side].values()]
    return [*(f"{ms:.1f}" for ms in sides), f"{chunk['speedup']:.2f}"]


def pair_row(pair: dict[str, float]) -> list[str]:
    fp32, int8 = pair["fp32_ms"], pair["int8_ms"]
    return [f"{fp32:.2f}", f"{int8:.2f}", f"{fp32 / int8:.2f}" if fp32 and int8 else ""]


def ratio_of(pair: dict[str, Any]) -> str:
    return f"{pair['int8_bytes'] / pair['fp32_bytes']:.3f}"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def met(bar: dict[str, Any]) -> str:
    return "yes" if bar["met"] else "**no**"
