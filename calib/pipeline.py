"""An fp32 plan becomes one of lower precision, with its calibration and its report inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from videossm.calib.assess import Origin, full_report, report_inputs, short_inputs, short_report
from videossm.calib.calibrate import calibrate, recorded_chunks
from videossm.calib.calibration import Calibration, Settings
from videossm.calib.memory import check_memory
from videossm.calib.observers import Precision
from videossm.calib.plans import HALF, add_to_plan, candidates, check_source, write_half, write_quantized
from videossm.calib.progress import Progress, Say
from videossm.calib.report import Report, write_report
from videossm.calib.sensitivity import Probe, hold_budget
from videossm.runtime import Plan

ReportKind = Literal["short", "full", "none"]


@dataclass(frozen=True)
class Request:
    """What to make. `calibration`, or else `settings` to record one with, for int8 and fp8; neither for fp16 and bf16.

    `max_error`: largest mean relative error of the latents, as `Probe.error` measures it; None for any.
    """

    precision: str
    calibration: Calibration | None = None
    settings: Settings | None = None
    max_error: float | None = None
    report: ReportKind = "short"


@dataclass(frozen=True)
class Lowered:
    """The plan that was made, and its report where one was asked for."""

    plan: Plan
    report: Report | None


def lower_precision(source: Plan, request: Request, folder: Path, progress: Progress, say: Say) -> Lowered:
    """Fills the empty `folder` with the fp32 plan `source` in another precision.

    Raises UserError: for a plan or a calibration that does not fit, for memory that is too small, and for values that
    are not finite.
    """
    check_source(source)
    check_memory(source)
    if request.precision in HALF:
        plan, origin = write_half(source, request.precision, folder), Origin()
    else:
        plan, origin = _quantised(source, request, folder, progress, say)
    report: Report
    if request.report == "none":
        return Lowered(plan, None)
    if request.report == "short":
        report = short_report(source, plan, short_inputs(source), origin, progress, say)
    else:
        report = full_report(source, plan, report_inputs(source), origin, progress, say)
    write_report(report, folder)
    return Lowered(add_to_plan(plan), report)


def _quantised(source: Plan, request: Request, folder: Path, progress: Progress, say: Say) -> tuple[Plan, Origin]:
    calibration = request.calibration or _calibrated(source, request, progress)
    calibration.check(source)
    linears, products, skipped = candidates(source)
    products = products if calibration.settings.quantize_attention else []
    names = [linear.name for linear in linears] + [product.name for product in products]
    ranking = None
    if request.max_error is not None:
        inputs = short_inputs(source)
        probe = Probe(source, inputs.prompts, inputs.seeds)
        ranking = hold_budget(probe, calibration, names, request.max_error, progress, say)
    back = ranking.fallback.layers if ranking and ranking.fallback else ()
    plan = write_quantized(source, calibration, set(names) - set(back), folder)
    quantised = [linear for linear in linears if linear.name not in back]
    return plan, Origin(calibration, names, quantised, skipped, ranking)


def _calibrated(source: Plan, request: Request, progress: Progress) -> Calibration:
    assert request.settings is not None, "a request says how to calibrate"
    precision: Precision = "int8" if request.precision == "int8" else "fp8"
    with progress(recorded_chunks(request.settings), "chunk") as bar:
        bar.set_description("calibration")
        return calibrate(source, precision, request.settings, bar.update)
