"""An fp32 plan becomes one of lower precision, with its calibration and its report inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from videossm.calib.assess import CHUNKS, Inputs, Made, Progress, assess
from videossm.calib.calibrate import calibrate, recorded_chunks
from videossm.calib.calibration import Calibration, Settings
from videossm.calib.memory import check_memory
from videossm.calib.observers import Precision
from videossm.calib.plans import HALF, add_to_plan, candidates, check_source, write_half, write_quantized
from videossm.calib.prompts import default_prompts
from videossm.calib.report import write_report
from videossm.calib.report.schema import FallbackRound, LayerSensitivity, Report, Sensitivity
from videossm.calib.sensitivity import Fallback, Probe, fall_back, sensitivity
from videossm.runtime import Plan

REPORT_ROLLOUTS = 2
REPORT_SEED = 2_000_000  # apart from those of calibrations and of the evaluation


@dataclass(frozen=True)
class Request:
    """What to make. `calibration`, or else `settings` to record one with, for int8 and fp8; neither for fp16 and bf16.

    `max_error`: largest mean relative error of the latents, as `Probe.error` measures it; None for any.
    """

    precision: str
    calibration: Calibration | None = None
    settings: Settings | None = None
    max_error: float | None = None
    report: bool = True
    report_chunks: int = CHUNKS


def lower_precision(source: Plan, request: Request, folder: Path, progress: Progress) -> Report | None:
    """Fills the empty `folder` with the fp32 plan `source` in another precision.

    Raises UserError: for a plan or a calibration that does not fit, for memory that is too small, and for values that
    are not finite.
    """
    check_source(source)
    check_memory(source)
    if request.precision in HALF:
        write_half(source, request.precision, folder)
        made = Made()
    else:
        made = _write_quantized(source, request, folder, progress)
    plan = Plan.open(folder)
    if not request.report:
        return None
    report = assess(source, plan, report_inputs(source, request.report_chunks), made, progress)
    write_report(report, folder)
    add_to_plan(folder)
    return report


def report_inputs(plan: Plan, chunks: int = CHUNKS) -> Inputs:
    """What a report on `plan` rolls out: prompts and seeds that no calibration of this project uses by default."""
    seeds = tuple(range(REPORT_SEED, REPORT_SEED + REPORT_ROLLOUTS))
    return Inputs(default_prompts(plan, REPORT_ROLLOUTS, REPORT_SEED), seeds, chunks)


def _write_quantized(source: Plan, request: Request, folder: Path, progress: Progress) -> Made:
    calibration = request.calibration or _calibrated(source, request, progress)
    calibration.check(source)
    linears, products, skipped = candidates(source)
    products = products if calibration.settings.quantize_attention else []
    names = [linear.name for linear in linears] + [product.name for product in products]
    table, chosen = None, set(names)
    if request.report or request.max_error is not None:
        table, chosen = _sensitivity(source, calibration, names, request.max_error, progress)
    write_quantized(source, calibration, chosen, folder)
    return Made(calibration, [linear for linear in linears if linear.name in chosen], skipped, table)


def _calibrated(source: Plan, request: Request, progress: Progress) -> Calibration:
    assert request.settings is not None, "a request says how to calibrate"
    precision: Precision = "int8" if request.precision == "int8" else "fp8"
    with progress(recorded_chunks(request.settings), "chunk") as bar:
        return calibrate(source, precision, request.settings, bar.update)


def _sensitivity(
    source: Plan, calibration: Calibration, names: Sequence[str], max_error: float | None, progress: Progress
) -> tuple[Sensitivity, set[str]]:
    inputs = report_inputs(source)
    probe = Probe(source, inputs.prompts, inputs.seeds)
    with progress(len(names), "layer") as bar:
        errors = sensitivity(probe, calibration, names, bar.update)
    fallback = Fallback((), 0.0, 0.0) if max_error is None else fall_back(probe, calibration, errors, max_error)
    chosen = set(names) - set(fallback.layers)
    layers = tuple(
        LayerSensitivity(
            layer=name,
            engine=probe.engines[name],
            error=error,
            rank=rank,
            kept=calibration.precision if name in chosen else "fp32",
            reason="" if name in chosen else f"among the costliest, for an error of at most {max_error:g}",
        )
        for rank, (name, error) in enumerate(errors.items(), 1)
    )
    rounds = [
        FallbackRound(layers=fallback.layers, error_before=fallback.error_before, error_after=fallback.error_after)
    ]
    measure = "mean relative error of the latents, short rollouts from fp32 states"
    table = Sensitivity(
        measure=measure, layers=layers, budget=max_error, fallback=tuple(rounds if max_error is not None else ())
    )
    return table, chosen
