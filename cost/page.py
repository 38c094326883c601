"""The cost of a plan as JSON types and as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from videossm.cost.devices import TF32, Device
from videossm.cost.estimate import REACHED, EngineCost, Times, chunk_times, peak_bytes, times
from videossm.cost.launches import RULES
from videossm.runtime.manifest import Manifest
from videossm.runtime.summary import size_text, state_bytes

WHEN_NONE = "at a new prompt, or at the first chunk"
# In ONNX Runtime, of the versions that opset 23 has: they run on the host.
WITHOUT_CUDA_KERNEL = ("Cos", "Equal", "Pad", "Round", "Sin")


def as_json(manifest: Manifest, costs: list[EngineCost], device: Device) -> dict[str, Any]:
    """Counts, and times in ms. `above_floor_ms`: the estimate without the floor, by kind."""
    return {
        "device": {
            "name": device.name,
            "source": device.source,
            "bytes_per_s": device.bytes_per_s,
            "flops_per_s": dict(device.flops),
        },
        "engines": {cost.name: _engine(manifest, cost, device) for cost in costs},
        "chunk": {backend: _chunk(manifest, costs, device, backend) for backend in RULES},
        "memory": {
            "state_bytes": state_bytes(manifest),
            "peak_bytes": {backend: peak_bytes(manifest, costs, backend) for backend in RULES},
            "device_bytes": device.memory_bytes,
        },
        "on_the_host": on_the_host(costs),
    }


def on_the_host(costs: list[EngineCost]) -> dict[str, int]:
    """Nodes by engine that ONNX Runtime runs on the host, where the device waits for them."""
    counts = {c.name: sum(node.operator in WITHOUT_CUDA_KERNEL for node in c.graph.nodes) for c in costs}
    return {name: count for name, count in counts.items() if count}


def _engine(manifest: Manifest, cost: EngineCost, device: Device) -> dict[str, Any]:
    values: dict[str, Any] = {
        "runs_per_chunk": cost.runs,
        "nodes": len(cost.graph.nodes),
        "flops": cost.flops,
        "weight_bytes": sum(cost.graph.weights.values()),
        "input_bytes": cost.graph.input_bytes,
        "output_bytes": cost.graph.output_bytes,
    }
    for backend in RULES:
        of_run = times(cost, manifest.precision, device, backend)
        values[backend] = {
            "launches": cost.count(backend),
            "moved_bytes": cost.moved_bytes(backend),
            "activation_bytes": cost.activation_bytes[backend],
            "compute_floor_ms": 1000 * of_run.compute_floor,
            "memory_floor_ms": 1000 * of_run.memory_floor,
            "estimate_ms": 1000 * of_run.estimate,
            "above_floor_ms": _ms(of_run.above),
        }
    return values


def _chunk(manifest: Manifest, costs: list[EngineCost], device: Device, backend: str) -> dict[str, Any]:
    chunk = chunk_times(costs, manifest.precision, device, backend)
    return {
        "flops": chunk.flops,
        "launches": chunk.launches,
        "moved_bytes": chunk.moved_bytes,
        "floor_ms": 1000 * chunk.floor,
        "estimate_ms": 1000 * chunk.estimate,
        "estimate_reached_ms": 1000 * chunk.reached,
        "above_floor_ms": _ms(chunk.above),
    }


def _ms(seconds: Mapping[str, float]) -> dict[str, float]:
    return {kind: 1000 * time for kind, time in sorted(seconds.items(), key=lambda item: -item[1])}


def lines(manifest: Manifest, costs: list[EngineCost], device: Device) -> Iterator[str]:
    """Estimates by counting; nothing was measured."""
    rates = ", ".join(f"{dtype} {device.flops[dtype] / 1e12:g}" for dtype in ("float32", TF32, "bfloat16", "int8"))
    yield f"device     {device.name}: {device.bytes_per_s / 1e12:g} TB/s; TFLOP/s: {rates} ({device.source})"
    yield "counted by the rules of docs/cost.md; no time below was measured"
    yield f"{'engine':<16}{'runs':>5}{'nodes':>7}{'GFLOP':>10}{'weights':>10}{'in':>10}{'out':>10}"
    for cost in costs:
        weights, graph = sum(cost.graph.weights.values()), cost.graph
        sizes = "".join(f"{size_text(size):>10}" for size in (weights, graph.input_bytes, graph.output_bytes))
        flops = sum(cost.flops.values()) / 1e9
        yield f"{cost.name:<16}{cost.runs or '-':>5}{len(cost.graph.nodes):>7}{flops:>10.4g}{sizes}"
    yield f"runs: in a chunk of the steady state; -: {WHEN_NONE}"
    for backend in RULES:
        yield from _backend_lines(manifest, costs, device, backend)
    waiting = on_the_host(costs)
    if waiting:
        names = ", ".join(f"{count} of {name}" for name, count in waiting.items())
        yield f"onnxruntime has no CUDA kernel for {', '.join(WITHOUT_CUDA_KERNEL)}: {names}; each waits for the host"
    yield "state      " + ", ".join(f"{name} {size_text(size)}" for name, size in state_bytes(manifest).items())
    peaks = ", ".join(f"{backend} {size_text(peak_bytes(manifest, costs, backend))}" for backend in RULES)
    yield f"peak       {peaks}; the device has {size_text(device.memory_bytes)}"


def _backend_lines(manifest: Manifest, costs: list[EngineCost], device: Device, backend: str) -> Iterator[str]:
    head = ("launches", "moved", "compute", "memory", "estimate")  # floors by compute and by memory
    yield (f"{backend:<16}" + "".join(f"{name:>10}" for name in head) + "   of a run, in ms")
    for cost in costs:
        of_run = times(cost, manifest.precision, device, backend)
        yield f"  {cost.name:<14}{_run(cost, of_run, backend)}"
    chunk = chunk_times(costs, manifest.precision, device, backend)
    yield (
        f"  a chunk       {chunk.launches:>10}{size_text(chunk.moved_bytes):>10}   floor {1000 * chunk.floor:.4g} ms, "
        f"estimate {1000 * chunk.estimate:.4g} ms; {1000 * chunk.reached:.4g} ms if products reach {REACHED:.0%}"
    )
    above = ", ".join(f"{kind} {time:.3g}" for kind, time in _ms(chunk.above).items() if time > 0)
    yield f"  above the floor, ms: {above}"


def _run(cost: EngineCost, of_run: Times, backend: str) -> str:
    floors = f"{1000 * of_run.compute_floor:>10.4g}{1000 * of_run.memory_floor:>10.4g}{1000 * of_run.estimate:>10.4g}"
    return f"{cost.count(backend):>10}{size_text(cost.moved_bytes(backend)):>10}{floors}"
