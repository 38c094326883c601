"""The cost of a model at its full size, by two plans of few layers: `python benchmarks/full_size_cost.py`.

It exports PRESET with two and with three layers, random weights, in the geometry that it has, and counts both plans.
All layers are alike: what the third one adds, each further one adds, too. So a count of L layers is that of two and
L - 2 times the difference; gigabytes of weights that nothing reads are not made. Only the memory engine, which takes
all layers as one batch, span by span, is traced with all layers: it has no weights. Plans that are in the folder stay:
delete it once the exporter has changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from machine import around, table, write_between

from videossm.calib.half import to_half
from videossm.cost.devices import DEVICES, Device
from videossm.cost.estimate import REACHED, EngineCost, chunk_times, engine_cost, read_costs, times
from videossm.cost.graph import read_graph
from videossm.cost.launches import RULES
from videossm.export.build import BuildOptions
from videossm.export.lowering import lower
from videossm.export.trace import described, trace
from videossm.models.family import Engine
from videossm.models.videossm.deployment import deployment
from videossm.models.videossm.model import VideoModel
from videossm.models.videossm.presets import videossm_1_3b
from videossm.runtime import Plan
from videossm.runtime.manifest import EngineSpec, Manifest, state_read
from videossm.runtime.preflight import device_bytes

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cost.md"
BEGIN = "<!-- by full_size_cost.py -->"
PRESET, LAYERS, PRECISION = "videossm-1.3b", 30, "bf16"
FEW = (2, 3)
MEMORY = "memory"
LOWERINGS = {"standard": "standard operators", "contrib": "a scan for each memory, as plugins have it"}


@dataclass(frozen=True)
class FewLayers:
    """The plans of FEW layers, counted."""

    plans: tuple[Plan, Plan]
    costs: tuple[list[EngineCost], list[EngineCost]]  # without the memory engine
    memory: EngineCost  # of all LAYERS

    def at_full_size(self, values: Callable[[list[EngineCost]], Sequence[float]]) -> list[float]:
        """The `values` of the engines without the memory's, with all LAYERS."""
        return at_full_size(*(values(costs) for costs in self.costs))


def at_full_size(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """What grows by as much with each layer, of its values with FEW layers."""
    times = (LAYERS - FEW[0]) / (FEW[1] - FEW[0])
    return [a + times * (b - a) for a, b in zip(first, second, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "full-size", help="where the plans are kept")
    parser.add_argument("--devices", nargs="+", default=["h200", "h100", "rtx4090", "rtx5090"], choices=DEVICES)
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables go; `-`: stdout")
    args = parser.parse_args()
    into_page = str(args.page) != "-"
    if into_page:
        around(args.page, BEGIN)
    parts = []
    for lowering, what in LOWERINGS.items():
        few = counted(args.folder, lowering)
        parts += [f"**Lowering `{lowering}`**: {what}.", "", engines(few), "", chunks(few, args.devices), ""]
    text = "\n".join(parts).rstrip()
    if into_page:
        write_between(args.page, BEGIN, text)
    else:
        print(text)
    return 0


def counted(folder: Path, lowering: str) -> FewLayers:
    plans = tuple(Plan.open(exported(folder, lowering, layers)) for layers in FEW)
    first, second = plans
    fewer, more = ([cost for cost in read_costs(plan) if cost.name != MEMORY] for plan in plans)
    return FewLayers((first, second), (fewer, more), memory_of_all_layers(first, lowering))


def memory_of_all_layers(plan: Plan, lowering: str) -> EngineCost:
    """Counted as `plan`, of few layers, would have it with LAYERS."""
    with torch.device("meta"):
        model = VideoModel(videossm_1_3b())
    engine = next(each for each in deployment(model, tokenizer="").engines if each.name == MEMORY)
    with TemporaryDirectory() as folder:
        graph, path = trace(engine, {}, BuildOptions.opset, Path(folder))
        lower(graph, lowering)
        onnx.save(to_half(graph, MEMORY, _with_states(plan.manifest, engine, graph), PRECISION), path)
        return engine_cost(MEMORY, 1, read_graph(path), plan.manifest.takes_tf32(MEMORY))


def _with_states(manifest: Manifest, engine: Engine, graph: onnx.ModelProto) -> Manifest:
    """`manifest` with the states of `engine` in all layers, each as the first layer has it."""
    inputs = [described(value) | {"source": engine.inputs[value.name]} for value in graph.graph.input]
    outputs = [described(value) | {"target": engine.outputs[value.name]} for value in graph.graph.output]
    values = {"file": f"{MEMORY}.onnx", "inputs": inputs, "outputs": outputs}
    states = {}
    for source in engine.inputs.values():
        name = str(state_read(source))
        like = manifest.state[f"0.{name.partition('.')[2]}"]
        states[name] = like.model_copy(update={"name": name})
    spec = EngineSpec.model_validate_json(json.dumps(values))
    return manifest.model_copy(update={"engines": {MEMORY: spec}, "state": states})


def exported(folder: Path, lowering: str, layers: int) -> Path:
    """The plan in `folder`; one that is there stays."""
    path = folder / f"{lowering}-{layers}.plan"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "videossm.export.cli", PRESET, "--random-weights", "--no-verify"]
        command += ["--set", f"layers={layers}", "--precision", PRECISION, "--report", "none"]
        subprocess.run([*command, "--lowering", lowering, "-o", str(path)], check=True, stderr=subprocess.DEVNULL)
    return path


def engines(few: FewLayers) -> str:
    """Of one run on an H200."""
    rows = []
    for index, cost in enumerate([*few.costs[0], few.memory]):
        if cost is few.memory:
            nodes, flops, own, *others = _of_engine([cost], 0)
        else:
            nodes, flops, own, *others = few.at_full_size(partial(_of_engine, index=index))
        counts, moved, ms = others[:2], others[2:4], others[4:]
        rows.append(
            [
                *(cost.name, str(cost.runs or "-"), f"{nodes:,.0f}", f"{flops / 1e12:.3g}", f"{own / 1e9:.3g}"),
                *(f"{count:,.0f}" for count in counts),
                *(f"{size / 1e9:.3g}" for size in moved),
                *(f"{1000 * time:.3g}" for time in ms),
            ]
        )
    head = ["a run of", "runs", "nodes", "TFLOP", "GB at least", "launches, TensorRT", "ONNX Runtime"]
    head += ["GB moved, TensorRT", "ONNX Runtime", "floor, ms", "TensorRT, ms", "ONNX Runtime, ms"]
    return table(head, rows)


def _of_engine(costs: list[EngineCost], index: int) -> list[float]:
    """Nodes, FLOPs and bytes; by backend launches and bytes moved; seconds: the floor, and by backend the estimate."""
    cost = costs[index]
    of_run = {backend: times(cost, PRECISION, DEVICES["h200"], backend) for backend in RULES}
    return [
        *(len(cost.graph.nodes), sum(cost.flops.values()), cost.own_bytes),
        *(cost.count(backend) for backend in RULES),
        *(cost.moved_bytes(backend) for backend in RULES),
        of_run["tensorrt"].floor,
        *(each.estimate for each in of_run.values()),
    ]


def chunks(few: FewLayers, names: list[str]) -> str:
    rows = []
    for name, backend in product(names, RULES):
        device = DEVICES[name]
        kinds = list(chunk_times([*few.costs[0], few.memory], PRECISION, device, backend).above)
        of_chunk = partial(_of_chunk, device=device, backend=backend, kinds=kinds)
        both = zip(few.at_full_size(of_chunk), of_chunk([few.memory]), strict=True)
        floor, estimate, reached, *above = (of_layers + of_memory for of_layers, of_memory in both)
        peak = _peak(few, backend)
        largest = sorted(zip(kinds, above, strict=True), key=lambda pair: -pair[1])[:5]
        rows.append(
            [
                *(device.name, backend, f"{1000 * floor:.0f}", f"**{1000 * estimate:.0f}**", f"{1000 * reached:.0f}"),
                f"{peak / 1e9:.1f}",
                ", ".join(f"{kind} {1000 * time:.1f}" for kind, time in largest if time > 5e-5),
            ]
        )
    head = ["a chunk on", "by", "floor, ms", "estimate, ms", f"at {REACHED:.0%} of the rate, ms", "peak, GB"]
    return table([*head, "above the floor, ms"], rows, texts=2)


def _peak(few: FewLayers, backend: str) -> float:
    """Bytes: engines, buffers, and the most that lies between the launches of one of them."""
    (held,) = at_full_size(*([device_bytes(plan.manifest)] for plan in few.plans))
    between = few.at_full_size(lambda costs: [cost.activation_bytes[backend] for cost in costs])
    return held + max(*between, few.memory.activation_bytes[backend])


def _of_chunk(costs: list[EngineCost], device: Device, backend: str, kinds: list[str]) -> list[float]:
    """Seconds: the floor, the estimate, that at 70 % of the rate, and those above the floor of each of `kinds`."""
    chunk = chunk_times(costs, PRECISION, device, backend)
    above = [chunk.above.get(kind, 0.0) for kind in kinds]
    return [chunk.floor, chunk.estimate, chunk.reached, *above]


if __name__ == "__main__":
    sys.exit(main())
