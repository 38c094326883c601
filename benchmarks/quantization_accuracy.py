"""What the scales come from, and what it is worth: `python benchmarks/quantization_accuracy.py`.

Calibrates `shapes` in several ways, makes a plan of each, and measures it against the fp32 plan on rollouts that none
of them has seen: real rollouts with each method, first chunks only and random inputs (as many passes of each),
SmoothQuant, attention's products as well, other numbers of rollouts, and the default once more with other prompts and
seeds, which shows what chance does. --evaluate also judges what the videos of some of the plans show. Writes Markdown
and, after every plan, JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from machine import add_outputs, introduction, measured_on, table, write
from quantization_speed import exported

from videossm.calib.assess import Inputs, Origin, report_inputs, short_report
from videossm.calib.calibrate import calibrate, recorded_chunks
from videossm.calib.calibration import Settings
from videossm.calib.evaluate import evaluate, evaluation_chunks, find_evaluation
from videossm.calib.observers import METHODS, EightBits, Method
from videossm.calib.options import CHUNKS, SEED, SIZE
from videossm.calib.plans import candidates, write_quantized
from videossm.calib.prompts import default_prompts
from videossm.calib.report import AccuracyReport, CalibrationRow
from videossm.runtime import Plan
from videossm.runtime.cli import progress, say

Data = Literal["rollouts", "first-chunks", "random"]

PRECISIONS: tuple[EightBits, ...] = ("int8", "fp8")
COMPARED_CHUNKS = 48  # of each of the report's rollouts
FP32 = "fp32"


@dataclass(frozen=True)
class Variant:
    """One way to calibrate.

    `again`: with other prompts and seeds than the first of its kind; `rollouts`: their number, if not the default.
    """

    method: Method
    data: Data = "rollouts"
    smoothquant: float | None = None
    attention: bool = False
    again: bool = False
    rollouts: int | None = None

    @property
    def name(self) -> str:
        extras = ["smoothquant"] * (self.smoothquant is not None) + ["attention"] * self.attention
        extras += ["again"] * self.again + [str(self.rollouts)] * (self.rollouts is not None)
        return "-".join([self.data, self.method, *extras])

    @property
    def source(self) -> str:
        """In words."""
        words = {"rollouts": "rollouts", "first-chunks": "first chunks", "random": "random inputs"}[self.data]
        words += ", other prompts" if self.again else ""
        words = f"{self.rollouts} {words}" if self.rollouts is not None else words
        words += f", SmoothQuant {self.smoothquant:g}" if self.smoothquant is not None else ""
        return words + (", attention too" if self.attention else "")

    def settings(self, plan: Plan, rollouts: int, chunks: int) -> Settings:
        """As many passes, of the same prompts, whatever the data is."""
        rollouts = self.rollouts or rollouts
        repeats, length = (chunks, 1) if self.data == "first-chunks" else (1, chunks)
        seed = SEED + 1000 * self.again
        return Settings(
            method=self.method,
            prompts=(default_prompts(plan, rollouts, seed) or ()) * repeats,
            seeds=tuple(range(seed, seed + rollouts * repeats)),
            chunks=length,
            data=self.data,
            smoothquant=self.smoothquant,
            quantize_attention=self.attention,
        )


DEFAULT = Variant("mse")
VARIANTS: dict[EightBits, tuple[Variant, ...]] = {
    precision: (
        DEFAULT,
        Variant("mse", again=True),
        Variant("mse", rollouts=4),
        Variant("mse", rollouts=32),
        *(Variant(method) for method in METHODS if method != DEFAULT.method),
        Variant("mse", "first-chunks"),
        Variant("max", "first-chunks"),
        Variant("max", "random"),
        *((Variant("mse", smoothquant=0.5),) if precision == "int8" else ()),
        Variant("mse", attention=True),
    )
    for precision in PRECISIONS
}


def main() -> None:
    names = sorted({variant.name for variants in VARIANTS.values() for variant in variants})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, help="the fp32 plan of shapes in place of a new one")
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="+", default=PRECISIONS)
    parser.add_argument("--variants", choices=names, nargs="+", default=names, help="some of the ways to calibrate")
    parser.add_argument("--evaluate", choices=names, nargs="+", default=[], help="also judge these plans' videos")
    parser.add_argument("--rollouts", type=int, default=SIZE)
    parser.add_argument("--chunks", type=int, default=CHUNKS, help="of each rollout that is calibrated on")
    parser.add_argument("--compared-chunks", type=int, default=COMPARED_CHUNKS, help="of each rollout that is compared")
    add_outputs(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
        plan = Plan.open(args.plan) if args.plan else exported(Path(folder, "fp32.plan"), "shapes")
        inputs = report_inputs(plan, args.compared_chunks)
        result = measured_on() | {
            "plan": {"name": plan.name, "identity": plan.identity},
            "calibrated_on": {"rollouts": args.rollouts, "chunks": args.chunks},
            "compared_on": {"rollouts": len(inputs.seeds), "chunks": inputs.chunks},
            FP32: scores(plan) if args.evaluate else {},
            "rows": [],
        }
        for precision in args.precisions:
            for variant in VARIANTS[precision]:
                if variant.name in args.variants:
                    settings = variant.settings(plan, args.rollouts, args.chunks)
                    row = measured(plan, precision, variant, settings, inputs, variant.name in args.evaluate)
                    result["rows"].append(row)
                    if args.json_out:
                        args.json_out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write(result, markdown(result), args.out, args.json_out)


def measured(
    plan: Plan, precision: EightBits, variant: Variant, settings: Settings, inputs: Inputs, judged: bool
) -> dict[str, Any]:
    """A `CalibrationRow` as plain JSON types, with what belongs to it."""
    with progress(recorded_chunks(settings), "chunk") as bar:
        calibration = calibrate(plan, precision, settings, bar.update)
    linears, products, skipped = candidates(plan)
    chosen = {linear.name for linear in linears}
    if variant.attention:
        chosen |= {product.name for product in products}
    with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
        other = write_quantized(plan, calibration, chosen, Path(folder))
        origin = Origin(calibration, [linear.name for linear in linears], linears, skipped)
        report = short_report(plan, other, inputs, origin, progress, say)
        found = scores(other) if judged else {}
    guided = report.guided_error
    assert guided is not None, "a course has one chunk or more"
    row = CalibrationRow(
        data=variant.source,
        method=variant.method,
        worst_pass_cosine=report.worst_pass.cosine.mean,
        guided_error=guided,
        scores=found,
    )
    return {"precision": precision, "variant": variant.name, **row.model_dump(mode="json"), **details(report)}


def details(report: AccuracyReport) -> dict[str, Any]:
    worst, added = report.worst_pass, [error for error in report.guided.relative_error if error is not None]
    states = report.guided.of_kind("*.memory")
    memory = [error for state in states for error in state.relative_error if error is not None]
    return {
        "worst_pass": worst.index,
        "worst_pass_sigma": worst.value,
        "worst_pass_error": worst.relative_error.mean,
        "worst_pass_lowest_cosine": worst.cosine.worst,
        "guided_error_median": median(added),
        "guided_error_first": added[0],
        "memory_error": sum(memory) / len(memory) if memory else None,
    }


def scores(plan: Plan) -> dict[str, float]:
    """Percent of videos that show what was asked, by what and when."""
    judge = find_evaluation(plan)
    assert judge is not None, "shapes has one"
    with progress(evaluation_chunks(plan, judge), "chunk") as bar:
        return {f"{of.what}, {of.at}": of.percent for of in evaluate(plan, judge, bar.update)}


def markdown(result: dict[str, Any]) -> str:
    """The page docs/quantization-accuracy.md."""
    on, compared = result["calibrated_on"], result["compared_on"]
    chunks = on["rollouts"] * on["chunks"]
    text = [
        "# How to calibrate: what it is worth",
        f"{introduction(result, 'quantization_accuracy.py')} Plan `{result['plan']['name']}`, against fp32.",
        f"A plan is calibrated on {chunks} chunks, or as many passes of random inputs: rollouts are {on['rollouts']} "
        f"of {on['chunks']} chunks where no other number stands before them, first chunks are {chunks} of one. "
        f"It is measured on {compared['rollouts']} other rollouts of {compared['chunks']} chunks. Errors are relative; "
        "the worst pass is that of the largest error of what it changes, and `lowest` its worst chunk.",
    ]
    for precision in dict.fromkeys(row["precision"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["precision"] == precision]
        text += [f"## {precision}", precision_table(rows), differences(rows)]
    if result[FP32]:
        text += ["## What the videos show", evaluation_table(result)]
    return "\n\n".join(part for part in text if part)


def precision_table(rows: list[dict[str, Any]]) -> str:
    of_pass = ["worst pass: noise", "cosine", "lowest", "error"]
    chunk = ["error a chunk adds: mean", "median", "first chunk", "memory"]
    cells = [
        [
            row["data"],
            row["method"],
            f"{row['worst_pass_sigma']:.3g}",
            f"{row['worst_pass_cosine']:.5f}",
            f"{row['worst_pass_lowest_cosine']:.5f}",
            f"{row['worst_pass_error']:.4f}",
            f"{row['guided_error']:.4f}",
            f"{row['guided_error_median']:.4f}",
            f"{row['guided_error_first']:.4f}",
            "" if row["memory_error"] is None else f"{row['memory_error']:.4f}",
        ]
        for row in rows
    ]
    return table(["calibrated on", "method", *of_pass, *chunk], cells, texts=2)


def differences(rows: list[dict[str, Any]]) -> str:
    """What other data makes of the errors, and what chance does."""
    known = {row["variant"]: row for row in rows}
    compared = [
        ("mse, other prompts", "rollouts-mse-again", "rollouts-mse"),
        ("mse, 4 rollouts", "rollouts-mse-4", "rollouts-mse"),
        ("mse, 32 rollouts", "rollouts-mse-32", "rollouts-mse"),
        ("mse, first chunks only", "first-chunks-mse", "rollouts-mse"),
        ("max, first chunks only", "first-chunks-max", "rollouts-max"),
        ("max, random inputs", "random-max", "rollouts-max"),
        ("max on random inputs, against mse on rollouts", "random-max", "rollouts-mse"),
    ]
    figures = "worst_pass_error", "guided_error_median"
    cells = [
        [label, *(f"{known[a][figure] / known[b][figure]:.3f}" for figure in figures)]
        for label, a, b in compared
        if a in known and b in known
    ]
    head = ["errors, of those with the same method on rollouts", "worst pass", "chunk, median"]
    return table(head, cells) if cells else ""


def evaluation_table(result: dict[str, Any]) -> str:
    judged = [row for row in result["rows"] if row["scores"]]
    head = ["percent", FP32, *(f"{row['precision']}, {row['variant']}" for row in judged)]
    cells = [
        [name, f"{percent:.1f}", *(f"{row['scores'][name]:.1f}" for row in judged)]
        for name, percent in result[FP32].items()
    ]
    return table(head, cells)


if __name__ == "__main__":
    main()
