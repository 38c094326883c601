"""The cost of a model at its full size, by two plans of few layers: `python benchmarks/full_size_cost.py`.

It exports PRESET with two and with three layers, random weights, in the geometry that it has, and counts both plans.
All layers are alike: what the third one adds, each further one adds, too. So a count of L layers is that of two and
L - 2 times the difference; gigabytes of weights that nothing reads are not made.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def at(self, layers: int, value: Callable[[Plan, list[EngineCost]], float]) -> float:
        """`value` of a plan of that many layers."""
        first, second = (value(plan, costs) for plan, costs in zip(self.plans, self.costs, strict=True))
        return first + (layers - FEW[0]) * (second - first) / (FEW[1] - FEW[0])


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
    """Of one run on the first device of the page."""
    device = DEVICES["h200"]
    rows = []
    for index, cost in enumerate(few.costs[0]):

        def value(get: Callable[[EngineCost], float], index: int = index) -> float:
            return few.at(LAYERS, lambda _, costs: get(costs[index]))

        ms = [1000 * value(lambda c, b=backend: times(c, PRECISION, device, b).estimate) for backend in RULES]
        floor = 1000 * value(lambda c: times(c, PRECISION, device, "tensorrt").floor)
        rows.append(
            [
                cost.name,
                str(cost.runs or "-"),
                f"{value(lambda c: len(c.graph.nodes)):,.0f}",
                f"{value(lambda c: sum(c.flops.values())) / 1e12:.3g}",
                f"{value(lambda c: c.own_bytes) / 1e9:.3g}",
                *(f"{value(lambda c, b=b: c.count(b)):,.0f}" for b in RULES),
                *(f"{value(lambda c, b=b: c.moved_bytes(b)) / 1e9:.3g}" for b in RULES),
                f"{floor:.3g}",
                *(f"{time:.3g}" for time in ms),
            ]
        )
    head = ["a run of", "runs", "nodes", "TFLOP", "GB at least", "launches, TensorRT", "ONNX Runtime"]
    head += ["GB moved, TensorRT", "ONNX Runtime", "floor, ms", "TensorRT, ms", "ONNX Runtime, ms"]
    return table(head, rows)


def chunks(few: FewLayers, names: list[str]) -> str:
    rows = []
    for name in names:
        device = DEVICES[name]
        for backend in RULES:

            def value(field: str, device: Device = device, backend: str = backend) -> float:
                return few.at(LAYERS, lambda _, costs: _field(costs, device, backend, field))

            above = {kind: value(kind) for kind in _kinds(few, device, backend)}
            named = sorted(above.items(), key=lambda item: -item[1])[:5]
            rows.append(
                [
                    device.name,
                    backend,
                    f"{1000 * value('floor'):.0f}",
                    f"**{1000 * value('estimate'):.0f}**",
                    f"{1000 * value('reached'):.0f}",
                    f"{few.at(LAYERS, lambda p, c, b=backend: peak_bytes(p.manifest, c, b)) / 1e9:.1f}",
                    ", ".join(f"{kind} {1000 * time:.1f}" for kind, time in named if time > 5e-5),
                ]
            )
    head = ["a chunk on", "by", "floor, ms", "estimate, ms", f"at {REACHED:.0%} of the rate, ms", "peak, GB"]
    return table([*head, "above the floor, ms"], rows, texts=2)


def _field(costs: list[EngineCost], device: Device, backend: str, field: str) -> float:
    chunk: Any = chunk_times(costs, PRECISION, device, backend)
    return float(
        chunk.above.get(field, 0.0) if field not in ("floor", "estimate", "reached") else getattr(chunk, field)
    )


def _kinds(few: FewLayers, device: Device, backend: str) -> list[str]:
    return list(chunk_times(few.costs[0], PRECISION, device, backend).above)


if __name__ == "__main__":
    sys.exit(main())
