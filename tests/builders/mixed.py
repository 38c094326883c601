"""Small plans of every kind of program. Their engines mean nothing, but whatever they read changes what they write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from graph import Graph, Shape
from onnx import TensorProto, helper
from small_plan import write_plan

from videossm.runtime.plan import Plan

BATCH = 2
SAMPLE = (BATCH, 2, 3)
HEIGHT, WIDTH = 2, 4
TEXT = 4
WINDOW = (3, 1, 2, "window")  # chunks, sink, chunk frames, positions
FIXED: dict[str, tuple[Shape, str]] = {
    "sample": (SAMPLE, "float32"),
    "noise": (SAMPLE, "float32"),
    "clean": (SAMPLE, "float32"),
    "text.ids": ((BATCH, TEXT), "int64"),
    "text.mask": ((BATCH, TEXT), "int64"),
    "window.slot_position": ((WINDOW[0] * WINDOW[2],), "int64"),
    "window.frame_position": ((WINDOW[2],), "int64"),
    "window.rho": ((1,), "float32"),
}


def engine(reads: str, writes: str, shapes: Mapping[str, tuple[Shape, str]] | None = None) -> Graph:
    """`reads` and `writes`: sources and targets, of frames with their number. `shapes`: those beside FIXED."""
    known = {**FIXED, **(shapes or {})}
    graph = Graph()
    read = {}
    for source in reads.split():
        shape, dtype = ((1,), "float32") if source.startswith("pass.") else known[source]
        read[source] = (graph.input(f"in.{source}", shape, source, dtype), shape)
    for number, target in enumerate(writes.split()):
        frames = target.startswith("frames=")
        shape, dtype = known.get(target, (SAMPLE, "float32"))
        if frames:
            shape, dtype = (BATCH, int(target[7:]), HEIGHT, WIDTH, 3), "uint8"
        total = graph.constant(0.1 * (number + 1))
        for place, (value, own) in enumerate(read.values()):
            total = graph.op("Add", total, _seen(graph, value, own, shape, 0.3 * (place + 1) + number))
        places = 0.3 * np.cos(np.arange(math.prod(shape[1:]))).reshape(1, *shape[1:])
        total = graph.op("Add", total, graph.constant(places))
        result = graph.op("Tanh", graph.op("Expand", total, graph.constant(shape, "int64")))
        if dtype != "float32":
            scale, offset = (100.0, 128.0) if frames else (50.0, 0.0)
            result = graph.op("Add", graph.scaled(result, scale), graph.constant(offset))
            result = graph.op("Cast", result, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        target = "frames" if frames else target
        graph.output(result, f"out.{target}", shape, target, dtype)
    return graph


def _seen(graph: Graph, value: str, shape: Shape, target: Shape, phase: float) -> str:
    """`value` as it enters an output of shape `target`: its places weighed differently, and summed by stream."""
    value = graph.op("Sin", graph.op("Cast", value, to=TensorProto.FLOAT))
    batched = shape[0] == BATCH and len(shape) > 1
    weights = np.cos(phase + np.arange(math.prod(shape[1:] if batched else shape)))
    flat = graph.reshape(value, (BATCH if batched else 1, -1))
    summed = graph.op("MatMul", flat, graph.constant(weights.reshape(-1, 1)))
    return graph.reshape(summed, (-1, *[1] * (len(target) - 1)))


def _state(*shape: int, dtype: str = "float32") -> tuple[Shape, str]:
    return (BATCH, *shape), dtype


def _whole(shape: tuple[Shape, str]) -> tuple[Shape, str]:
    (batch, places, *rest), dtype = shape
    return (batch, WINDOW[0] * places, *rest), dtype


def per_pass(folder: Path, **changes: Any) -> Plan:
    """A streamed network: each pass has its own state; no text, no window."""
    shapes = {"state.h": _state(3), "state.x": _state(2, 2), "state.cache": _state(2)}
    graphs = {
        "net": engine("sample pass.t state.h state.x", "sample state.h state.x", shapes),
        "paint": engine("clean state.cache", "frames=2 state.cache", shapes),
    }
    states = {"h": "carry per_pass", "x": "carry per_pass half", "cache": "carry"}
    return write_plan(folder, graphs, ["net t=1", "net t=0.5", "net t=0.1"], ["after paint"], states, **changes)


def committed(folder: Path, **changes: Any) -> Plan:
    """A running sum that the committing pass writes; its decoder reads it; text, no window."""
    shapes = {"state.kv": _state(2, 2), "state.words": _state(TEXT), "state.count": _state(1, dtype="int32")}
    graphs = {
        "read": engine("text.ids text.mask", "state.words", shapes),
        "net": engine("sample pass.t state.kv state.words state.count", "sample state.kv state.count", shapes),
        "paint": engine("clean state.kv state.words", "frames=3", shapes),
    }
    states = {"kv": "carry", "words": "prompt", "count": "carry"}
    passes = ["net t=1", "net t=0.5", "net t=0 commits"]
    return write_plan(folder, graphs, passes, ["prompt read", "after paint"], states, text=TEXT, **changes)


def before(folder: Path, **changes: Any) -> Plan:
    """Calls before the passes, one of which reads what the other wrote; a ring that the second one sees."""
    shapes = {
        "state.words": _state(TEXT),
        "state.plan": _state(3),
        "state.hint": _state(2),
        "state.key": _whole(_state(2, 3)),
        "evicted.key": _state(2, 3),
        "state.old": _state(3),
    }
    written = {**shapes, "state.key": _state(2, 3)}
    graphs = {
        "read": engine("text.ids text.mask", "state.words", shapes),
        "plan": engine("window.frame_position window.rho state.words state.old", "state.plan", shapes),
        "hint": engine("state.plan state.key window.slot_position", "state.hint", shapes),
        "net": _net_of_ring(shapes, written),
        "leave": engine("evicted.key state.old", "state.old", shapes),
        "paint": engine("clean state.words", "frames=2", shapes),
    }
    states = {"words": "prompt", "plan": "chunk", "hint": "chunk", "key": "ring half", "old": "carry"}
    calls = ["prompt read", "before plan", "before hint", "evict leave", "after paint"]
    passes = ["net t=1", "net t=0.3", "net t=0 commits"]
    return write_plan(folder, graphs, passes, calls, states, window=WINDOW, text=TEXT, **changes)


def _net_of_ring(read: Mapping[str, tuple[Shape, str]], written: Mapping[str, tuple[Shape, str]]) -> Graph:
    """A ring is read whole and written in part, so its two shapes differ."""
    graph = engine("sample pass.t state.hint state.key window.slot_position", "sample", read)
    part = engine("sample", "state.key", written)
    names = {node.output[0]: f"part.{node.output[0]}" for node in part.nodes} | {
        c.name: f"part.{c.name}" for c in part.constants
    }
    del names["out.state.key"]
    for node in part.nodes:
        graph.nodes.append(
            helper.make_node(
                node.op_type,
                [names.get(name, name) for name in node.input],
                [names.get(name, name) for name in node.output],
                **{a.name: helper.get_attribute_value(a) for a in node.attribute},
            )
        )
    for constant in part.constants:
        constant.name = names[constant.name]
        graph.constants.append(constant)
    graph.outputs += part.outputs
    return graph


def in_place(folder: Path, **changes: Any) -> Plan:
    """A state that a call lays out before the passes; each of them writes two of its five places and reads them all."""
    shapes = {"state.window": _state(5), "state.old": _state(3)}
    net = Graph()
    sample, level = net.input("in.sample", SAMPLE, "sample"), net.input("in.pass.t", (1,), "pass.t")
    window = net.input("in.state.window", (BATCH, 5), "state.window")
    first, end, axis = (net.constant([at], "int64") for at in (0, 2, 1))
    own = net.op("Slice", net.reshape(sample, (BATCH, -1)), first, end, axis)
    where = np.stack(np.meshgrid(np.arange(BATCH), np.arange(3, 5), indexing="ij"), -1)
    written = net.op("ScatterND", window, net.constant(where, "int64"), own)
    total = _seen(net, level, (1,), SAMPLE, 0.3)
    for value, shape in ((written, (BATCH, 5)), (sample, SAMPLE)):
        total = net.op("Add", total, _seen(net, value, shape, SAMPLE, 0.6 * len(shape)))
    net.output(written, "out.state.window", (BATCH, 5), "state.window")
    net.output(net.op("Tanh", net.op("Add", total, sample)), "out.sample", SAMPLE, "sample")
    graphs = {
        "lay": engine("state.old", "state.window", shapes),
        "net": net,
        "paint": engine("clean state.old", "frames=2 state.old", shapes),
    }
    states, passes = {"window": "chunk", "old": "carry"}, ["net t=1", "net t=0.5", "net t=0.1"]
    return write_plan(folder, graphs, passes, ["before lay", "after paint"], states, **changes)


def several(folder: Path, **changes: Any) -> Plan:
    """Two calls at every moment, a first chunk of another length, and two decoders."""
    shapes = {
        "state.words": _state(TEXT),
        "state.pairs": _state(2),
        "state.hint": _state(2),
        "state.key": _whole(_state(2, 3)),
        "evicted.key": _state(2, 3),
        "state.old": _state(3),
        "state.older": _state(2),
        "state.cache": _state(2),
        "state.light": _state(1),
    }
    written = {**shapes, "state.key": _state(2, 3)}
    graphs = {
        "read": engine("text.ids text.mask", "state.words", shapes),
        "pair": engine("state.words text.mask", "state.pairs", shapes),
        "plan": engine("window.frame_position state.pairs state.older state.light", "state.hint", shapes),
        "net": _net_of_ring(shapes, written),
        "leave": engine("evicted.key state.old", "state.old", shapes),
        "forget": engine("state.old evicted.key state.older", "state.older", shapes),
        "light": engine("clean state.light state.cache", "state.light", shapes),
        "paint_first": engine("clean state.cache state.light", "frames=1 state.cache", shapes),
        "paint": engine("clean state.cache state.light", "frames=3 state.cache", shapes),
    }
    states = {"words": "prompt", "pairs": "prompt", "hint": "chunk", "key": "ring"}
    states |= {"old": "carry", "older": "carry", "cache": "carry", "light": "carry"}
    calls = ["prompt read", "prompt pair", "before plan", "evict leave", "evict forget", "after light"]
    calls += ["after_first paint_first", "after_later paint"]
    passes = ["net t=1", "net t=0 commits"]
    return write_plan(folder, graphs, passes, calls, states, window=WINDOW, text=TEXT, **changes)


def clip(folder: Path, **changes: Any) -> Plan:
    """Four chunks and no state at all; the last pass leaves the sample as it is, and one draws fresh noise."""
    graphs = {
        "net": engine("sample noise pass.t", "sample"),
        "look": engine("sample", "state.seen", {"state.seen": _state(2)}),
        "paint_first": engine("clean state.seen", "frames=2", {"state.seen": _state(2)}),
        "paint": engine("clean state.seen", "frames=1", {"state.seen": _state(2)}),
    }
    passes = ["net t=1 noise", "net t=0.5", "look commits"]
    calls = ["after_first paint_first", "after_later paint"]
    return write_plan(folder, graphs, passes, calls, {"seen": "carry"}, **{"chunks": 4, **changes})


def no_state(folder: Path, **changes: Any) -> Plan:
    """One chunk of a model without anything to keep."""
    graphs = {"net": engine("sample pass.t", "sample"), "paint": engine("clean", "frames=5")}
    return write_plan(folder, graphs, ["net t=1", "net t=0.5"], ["after paint"], **{"chunks": 1, **changes})


def no_text(folder: Path, **changes: Any) -> Plan:
    """A window without text: nothing is ever made again, so no samples are kept."""
    shapes = {"state.hint": _state(2), "state.key": _whole(_state(2, 3)), "evicted.key": _state(2, 3)}
    written = {**shapes, "state.key": _state(2, 3)}
    graphs = {
        "plan": engine("window.frame_position window.rho", "state.hint", shapes),
        "net": _net_of_ring(shapes, written),
        "paint": engine("clean", "frames=2", shapes),
    }
    window = (*WINDOW[:3], "absolute")
    calls, states = ["before plan", "after paint"], {"hint": "chunk", "key": "ring"}
    return write_plan(folder, graphs, ["net t=1", "net t=0 commits"], calls, states, window=window, **changes)


KINDS: dict[str, Callable[..., Plan]] = {
    make.__name__: make for make in (per_pass, committed, before, in_place, several, clip, no_state, no_text)
}
