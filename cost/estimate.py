"""The cost of a plan: what its engines count, and how long a chunk takes a device at least and by estimate.

**The floor** of an engine's run is the longer of two times: its products at the device's rate for the plan's
precision, and its weights, inputs and outputs once through memory. **The estimate** is the sum over all launches, one
after the other: the longer of its FLOPs and its bytes at the device's rates, a gap before the next, and for a scan no
less than its blocks of tokens one after the other. Rates are the published ones; no product of a size reaches them all
the time, so an estimate with a reached share beside it is in the summary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from videossm.cost.counts import HEAVY, flops_of, kind_of
from videossm.cost.devices import TF32, Device
from videossm.cost.graph import EngineGraph, read_graph
from videossm.cost.launches import RULES, Launch, activation_bytes, launches
from videossm.runtime import Plan
from videossm.runtime.errors import PlanError
from videossm.runtime.manifest import Manifest
from videossm.runtime.preflight import device_bytes

GAP_S = {"tensorrt": 2e-6, "onnxruntime": 5e-6}  # between launches: within a CUDA graph; started by the host
SERIAL_S = 1.5e-6  # of a scan's block of tokens, which waits for the one before
REACHED = 0.7  # share of the device's rate that large products and attention reach in practice
GAPS = "gaps between launches"
WIDE = ("float32", TF32)
LOW_PRECISION = {"fp16": "float16", "bf16": "bfloat16", "fp8": "bfloat16", "int8": "bfloat16"}


@dataclass(frozen=True)
class EngineCost:
    """What one run of an engine counts. `runs`: a chunk, in the steady state; 0 at a new prompt or at the first chunk.

    `launches`: by backend. `activation_bytes`: by backend, the most at any time.
    """

    name: str
    runs: int
    graph: EngineGraph
    launches: Mapping[str, list[Launch]]
    activation_bytes: Mapping[str, int]

    @cached_property
    def flops(self) -> dict[str, int]:
        """By kind of node."""
        found: dict[str, int] = defaultdict(int)
        for node in self.graph.nodes:
            found[kind_of(node)] += flops_of(node)
        return {kind: flops for kind, flops in found.items() if flops}

    @property
    def own_bytes(self) -> int:
        """Weights that are read, inputs and outputs, once."""
        graph = self.graph
        return sum(graph.weights.values()) + graph.input_bytes + graph.output_bytes

    def moved_bytes(self, backend: str) -> int:
        return sum(launch.bytes for launch in self.launches[backend])

    def count(self, backend: str) -> int:
        """Of launches."""
        return sum(launch.count for launch in self.launches[backend])


@dataclass(frozen=True)
class Times:
    """Of one run of an engine, in seconds. `by_kind`: the estimate; `above`: what of each kind is above the floor."""

    compute_floor: float
    memory_floor: float
    by_kind: Mapping[str, float]
    above: Mapping[str, float]

    @property
    def floor(self) -> float:
        return max(self.compute_floor, self.memory_floor)

    @property
    def estimate(self) -> float:
        return sum(self.by_kind.values())


def read_costs(plan: Plan) -> list[EngineCost]:
    """Of all engines. Raises PlanError for a plan of engines, whose graphs are gone, or a graph without shapes."""
    manifest = plan.manifest
    if manifest.backend != "onnxruntime":
        raise PlanError(
            f"plan: got {plan.path} for {manifest.backend}, expected one of ONNX graphs, which say what is computed; "
            "give the plan that it was built of, or export one with --backend onnxruntime"
        )
    runs = runs_in_steady_state(manifest)
    costs = []
    for name, engine in manifest.engines.items():
        graph = read_graph(plan.path / engine.file, manifest.in_place(name))
        costs.append(engine_cost(name, runs.get(name, 0), graph, manifest.takes_tf32(name)))
    return costs


def engine_cost(name: str, runs: int, graph: EngineGraph, tf32: bool) -> EngineCost:
    """`runs`: in a chunk. `tf32`: whether its fp32 products may be TF32's."""
    started = {backend: launches(graph, rules, tf32) for backend, rules in RULES.items()}
    between = {backend: activation_bytes(graph, rules) for backend, rules in RULES.items()}
    return EngineCost(name, runs, graph, started, between)


def runs_in_steady_state(manifest: Manifest) -> dict[str, int]:
    """How often each engine runs for a chunk, once the window is full and the prompt stays."""
    runs: dict[str, int] = defaultdict(int)
    for each in manifest.passes:
        runs[each.engine] += 1
    for name in manifest.called("before", "evict", "after", "after_later"):
        runs[name] += 1
    return runs


def times(cost: EngineCost, precision: str, device: Device, backend: str) -> Times:
    """Of one run. The floor of a product in fp32 or TF32 in a plan of lower precision is that of the lower one."""
    by_kind: dict[str, float] = defaultdict(float)
    compute: dict[str, float] = defaultdict(float)
    own: dict[str, float] = defaultdict(float)
    for launch in cost.launches[backend]:
        if launch.kind in HEAVY:
            lowest = LOW_PRECISION.get(precision, launch.dtype) if launch.dtype in WIDE else launch.dtype
            compute[launch.kind] += launch.flops / device.rate(lowest)
        own[launch.kind] += launch.own_bytes / device.bytes_per_s
        by_kind[launch.kind] += seconds(launch, device)
        by_kind[GAPS] += launch.count * GAP_S[backend]
    compute_floor, memory_floor = sum(compute.values()), cost.own_bytes / device.bytes_per_s
    of_floor = compute if compute_floor >= memory_floor else _shares(own, memory_floor)
    return Times(compute_floor, memory_floor, by_kind, {kind: s - of_floor[kind] for kind, s in by_kind.items()})


def _shares(parts: Mapping[str, float], whole: float) -> dict[str, float]:
    """`whole` in the proportions of `parts`: several launches may read one input."""
    scale = whole / (sum(parts.values()) or 1.0)
    return defaultdict(float, {kind: scale * part for kind, part in parts.items()})


def seconds(launch: Launch, device: Device) -> float:
    """Without the gap. Products in fp32 and all that is no product run without tensor cores."""
    rate = device.rate(launch.dtype if launch.kind in HEAVY else "float32") * launch.rate
    return max(launch.flops / rate, launch.bytes / device.bytes_per_s, launch.serial * SERIAL_S)


@dataclass(frozen=True)
class ChunkTimes:
    """A chunk of the steady state, in seconds: the sum over all runs of its engines."""

    floor: float
    estimate: float
    reached: float  # the estimate, if products and attention reach REACHED of the rate
    above: Mapping[str, float]
    launches: int
    moved_bytes: int
    flops: int


def chunk_times(costs: list[EngineCost], precision: str, device: Device, backend: str) -> ChunkTimes:
    above: dict[str, float] = defaultdict(float)
    floor = estimate = products = 0.0
    for cost in costs:
        of_run = times(cost, precision, device, backend)
        floor += cost.runs * of_run.floor
        estimate += cost.runs * of_run.estimate
        for kind, time in of_run.above.items():
            above[kind] += cost.runs * time
        for launch in cost.launches[backend]:
            if launch.kind in HEAVY and not launch.serial:
                rate = device.rate(launch.dtype) * launch.rate
                products += cost.runs * max(0.0, launch.flops / rate / REACHED - seconds(launch, device))
    return ChunkTimes(
        floor,
        estimate,
        estimate + products,
        above,
        sum(cost.runs * cost.count(backend) for cost in costs),
        sum(cost.runs * cost.moved_bytes(backend) for cost in costs),
        sum(cost.runs * sum(cost.flops.values()) for cost in costs),
    )


def peak_bytes(manifest: Manifest, costs: list[EngineCost], backend: str) -> int:
    """Engines, buffers, and the most that lies between the launches of one of them."""
    return device_bytes(manifest) + max(cost.activation_bytes[backend] for cost in costs)
