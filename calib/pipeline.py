"""An fp32 plan becomes one of lower precision, with its calibration and its report inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from videossm.calib.assess import Origin, full_report, report_inputs, short_inputs, short_report
from videossm.calib.calibrate import calibrate, recorded_chunks, settings_for
from videossm.calib.calibration import Calibration
from videossm.calib.memory import check_memory
from videossm.calib.observers import EightBits
from videossm.calib.options import HALF, PrecisionOptions
from videossm.calib.plans import add_to_plan, candidates, check_source, write_half, write_quantized
from videossm.calib.progress import Progress, Say
from videossm.calib.report import AccuracyReport, write_report
from videossm.calib.sensitivity import Probe, hold_budget
from videossm.runtime import Plan


@dataclass(frozen=True)
class Lowered:
    """The plan that was made, and its report where one was asked for."""

    plan: Plan
    report: AccuracyReport | None


def lower_precision(source: Plan, options: PrecisionOptions, folder: Path, progress: Progress, say: Say) -> Lowered:
    """Fills the empty `folder` with the fp32 plan `source` in another precision, as `options` say, which were checked.

    Raises UserError: for a plan or a calibration that does not fit, for memory that is too small, and for values that
    are not finite.
    """
    check_source(source)
    check_memory(source)
    if options.precision in HALF:
        plan, origin = write_half(source, options.precision, folder), Origin()
    else:
        plan, origin = _quantised(source, options, folder, progress, say)
    report: AccuracyReport
    if options.report == "none":
        return Lowered(plan, None)
    if options.report == "full":
        report = full_report(source, plan, report_inputs(source), origin, progress, say)
    else:
        report = short_report(source, plan, short_inputs(source), origin, progress, say)
    write_report(report, folder)
    return Lowered(add_to_plan(plan), report)


def _quantised(
    source: Plan, options: PrecisionOptions, folder: Path, progress: Progress, say: Say
) -> tuple[Plan, Origin]:
    calibration = options.scales() or _calibrated(source, options, progress)
    calibration.check(source)
    linears, products, skipped = candidates(source)
    products = products if calibration.settings.quantize_attention else []
    names = list(dict.fromkeys(layer.name for layer in (*linears, *products)))
    ranking = None
    if options.max_error is not None:
        inputs = short_inputs(source)
        probe = Probe(source, inputs.prompts, inputs.seeds)
        ranking = hold_budget(probe, calibration, names, options.max_error, progress, say)
    back = ranking.fallback.layers if ranking and ranking.fallback else ()
    plan = write_quantized(source, calibration, set(names) - set(back), folder)
    quantised = [linear for linear in linears if linear.name not in back]
    return plan, Origin(calibration, names, quantised, skipped, ranking)


def _calibrated(source: Plan, options: PrecisionOptions, progress: Progress) -> Calibration:
    settings = settings_for(source, options.calibrating)
    with progress(recorded_chunks(settings), "chunk") as bar:
        bar.set_description("calibration")
        return calibrate(source, cast("EightBits", options.precision), settings, bar.update)
