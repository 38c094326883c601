"""The cost of a model at its full size, by two plans of few layers: `python benchmarks/full_size_cost.py`.

It exports PRESET with two and with three layers, random weights, in the geometry that it has, and counts both plans.
All layers are alike: what the third one adds, each further one adds, too. So a count of L layers is that of two and
L - 2 times the difference; gigabytes of weights that nothing reads are not made. Plans that are in the folder stay:
delete it once the exporter has changed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from machine import around, table, write_between

from videossm.cost.devices import DEVICES, Device
from videossm.cost.estimate import REACHED, EngineCost, chunk_times, peak_bytes, read_costs, times
from videossm.cost.launches import RULES
from videossm.runtime import Plan

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cost.md"
BEGIN = "<!-- by full_size_cost.py -->"
PRESET, LAYERS, PRECISION = "videossm-1.3b", 30, "bf16"
FEW = (2, 3)
LOWERINGS = {"standard": "standard operators", "contrib": "a scan for each memory, as plugins have it"}


@dataclass(frozen=True)
class FewLayers:
    """The plans of FEW layers, counted."""

    plans: tuple[Plan, Plan]
    costs: tuple[list[EngineCost], list[EngineCost]]

    def at(self, layers: int, values: Callable[[Plan, list[EngineCost]], Sequence[float]]) -> list[float]:
        """The `values` of a plan of that many layers."""
        first, second = (values(plan, costs) for plan, costs in zip(self.plans, self.costs, strict=True))
        times = (layers - FEW[0]) / (FEW[1] - FEW[0])
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
    return FewLayers((first, second), (read_costs(first), read_costs(second)))


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
    for index, cost in enumerate(few.costs[0]):
        nodes, flops, own, *others = few.at(LAYERS, partial(_of_engine, index=index))
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


def _of_engine(plan: Plan, costs: list[EngineCost], index: int) -> list[float]:
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
        kinds = list(chunk_times(few.costs[0], PRECISION, device, backend).above)
        of_chunk = partial(_of_chunk, device=device, backend=backend, kinds=kinds)
        floor, estimate, reached, peak, *above = few.at(LAYERS, of_chunk)
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


def _of_chunk(plan: Plan, costs: list[EngineCost], device: Device, backend: str, kinds: list[str]) -> list[float]:
    """Seconds, bytes at the peak, and seconds above the floor of each of `kinds`."""
    chunk = chunk_times(costs, PRECISION, device, backend)
    above = [chunk.above.get(kind, 0.0) for kind in kinds]
    return [chunk.floor, chunk.estimate, chunk.reached, peak_bytes(plan.manifest, costs, backend), *above]


if __name__ == "__main__":
    sys.exit(main())
