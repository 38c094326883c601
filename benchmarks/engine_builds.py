"""Time and size of every engine: `python benchmarks/engine_builds.py PLAN .. --page docs/tensorrt.md`.

PLAN: fp32 plans of ONNX graphs with the lowering `standard`. Builds each in every precision with TensorRT-RTX, without
a GPU, for sm_89, for sm_89 and sm_120, and portable, and writes the tables between the markers in the page.
Activations' scales are made up: what an engine costs to build does not depend on them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import around, measured_on, table, write_between

from videossm.calib.calibration import Calibration, Settings, Source, TensorScale
from videossm.calib.observers import FORMATS, EightBits
from videossm.calib.options import HALF
from videossm.calib.plans import candidates, quantised_engines, write_half, write_quantized
from videossm.export.tensorrt.build import BuiltEngine, build_engines
from videossm.export.tensorrt.options import TensorRtOptions
from videossm.runtime import Plan
from videossm.runtime.backends.tensorrt.module import load_tensorrt
from videossm.runtime.cli import progress

BEGIN = "<!-- by engine_builds.py -->"
BACKEND = "tensorrt-rtx"
TARGETS = {"sm_89": ("sm_89",), "sm_89 and sm_120": ("sm_89", "sm_120"), "portable": ()}
QUANTISED: tuple[EightBits, ...] = ("fp8", "int8")
AMAX = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", metavar="PLAN", nargs="+", type=Plan.open)
    parser.add_argument("--page", type=Path, required=True, help="with the markers that the tables go between")
    args = parser.parse_args()
    try:
        around(args.page, BEGIN)  # minutes of work follow
    except ValueError as error:
        parser.error(str(error))
    write_between(args.page, BEGIN, "\n\n".join([_introduction(), *(_measured(plan) for plan in args.plans)]))


def _introduction() -> str:
    on = measured_on()
    version = load_tensorrt(BACKEND).__version__
    where = f"{on['machine']['cpu']}, {on['machine']['threads']} threads, no GPU, TensorRT-RTX {version}"
    return f"Written by `benchmarks/engine_builds.py` on {on['date'][:10]}: {where}. Seconds, parsing included, and MB."


def _measured(plan: Plan) -> str:
    """The table of one plan: a row for each precision and target."""
    stream, names = plan.manifest.stream, list(plan.manifest.engines)
    graphs = sum(file.size_bytes for name, file in plan.manifest.files.items() if ".onnx" in name)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for precision, source in _in_precisions(plan, Path(temporary)):
            for target, architectures in TARGETS.items():
                folder = Path(temporary, f"{precision} {target}")
                folder.mkdir()
                built = build_engines(source, {}, BACKEND, TensorRtOptions(gpu_arch=architectures), folder, progress)
                rows.append([precision, target, *(_cell([built[name]]) for name in names), _cell(list(built.values()))])
    title = f"`{plan.name}`, {stream.width} x {stream.height}, graphs of {graphs / 1e6:.0f} MB:"
    return f"{title}\n\n{table(['precision', 'for', *names, 'plan'], rows, texts=2)}"


def _cell(engines: list[BuiltEngine]) -> str:
    return f"{sum(e.seconds for e in engines):.1f} s, {sum(e.size_bytes for e in engines) / 1e6:.1f}"


def _in_precisions(plan: Plan, folder: Path) -> Iterator[tuple[str, Plan]]:
    """Every precision and the plan in it, under `folder` but for the fp32 plan itself."""
    yield "fp32", plan
    for half in HALF:
        target = folder / half
        target.mkdir()
        yield half, write_half(plan, half, target)
    linears = candidates(plan).linears
    for quantised in QUANTISED:
        target = folder / quantised
        target.mkdir()
        calibration = _made_up(plan, linears, quantised)
        yield quantised, write_quantized(plan, calibration, {linear.name for linear in linears}, target)


def _made_up(plan: Plan, linears: list[Any], precision: EightBits) -> Calibration:
    scale = FORMATS[precision].scale(AMAX)
    tensor = TensorScale(amax=AMAX, low=None, scale=scale, zero_point=0, passes=(), channel_amax=None)
    settings = Settings(
        method="max", prompts=(), seeds=(), chunks=1, data="random", smoothquant=None, quantize_attention=False
    )
    engines = quantised_engines(plan.manifest)
    return Calibration(
        format="videossm-calibration",
        version=2,
        precision=precision,
        source=Source.of(plan, engines),
        settings=settings,
        tensors={engine: {x.input: tensor for x in linears if x.engine == engine} for engine in engines},
    )


if __name__ == "__main__":
    main()
