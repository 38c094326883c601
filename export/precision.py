"""After the fp32 plan: the one of the precision that was asked for, made by `videossm.calib`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from videossm.calib.cli.options import CalibrationOptions
from videossm.calib.cli.packages import export_packages
from videossm.runtime.cli import progress, say
from videossm.runtime.errors import UserError

if TYPE_CHECKING:  # imports onnx: --help does without
    from videossm.calib.calibration import Calibration
    from videossm.calib.pipeline import Lowered, ReportKind, Request
    from videossm.runtime import Plan

QUANTISED = ("fp8", "int8")
REPORTS = ("short", "full", "none")


@dataclass(frozen=True)
class PrecisionOptions:
    """What the command line says of it.

    `calibration`: a file of scales; without one, they are recorded. `report`: one of REPORTS, None where not given.
    """

    precision: str
    calibration: Path | None
    calibrating: CalibrationOptions
    max_error: float | None
    report: str | None


def check_precision(options: PrecisionOptions) -> None:
    """Raises UserError for an option that the precision has no use for, or a value that cannot be used."""
    precision, max_error, calibrating = options.precision, options.max_error, options.calibrating
    calibrating.check(precision)
    given = calibrating.given + ["--max-error"] * (max_error is not None)
    if precision not in QUANTISED and (given or options.calibration):
        option = "--calibration" if options.calibration else given[0]
        raise UserError(f"{option}: got it with {precision}, expected --precision int8 or fp8; leave it out")
    if options.calibration and calibrating.given:
        raise UserError(f"{calibrating.given[0]}: got --calibration as well, expected one of them; leave one out")
    if max_error is not None and not (math.isfinite(max_error) and max_error > 0):
        raise UserError(f"--max-error: got {max_error:g}, expected more than 0, as 0.05; change it")
    if options.report not in (None, *REPORTS):
        raise UserError(f"--report: got {options.report}, expected one of {', '.join(REPORTS)}; choose one")
    if precision == "fp32" and options.report not in (None, "none"):
        raise UserError(
            f"--report: got {options.report} with fp32, expected another --precision, which a report compares with "
            "fp32; leave it out"
        )
    _calibration(options)


def what_would_be_done(options: PrecisionOptions) -> str:
    """After the fp32 plan, in words that follow "It would"; empty for fp32."""
    if options.precision == "fp32":
        return ""
    steps = []
    if options.calibration:
        steps.append(f"take the scales from {options.calibration}")
    elif options.precision in QUANTISED:
        steps.append(f"record scales over {options.calibrating.rollouts}")
    report = _report(options)
    steps.append("add no report" if report == "none" else f"add a {report} report")
    return " and ".join(steps)


def make_precision(options: PrecisionOptions, fp32: Plan, folder: Path) -> Lowered:
    """From the plan `fp32` the one in the empty `folder`, and its report, where it has one."""
    from videossm.calib.pipeline import lower_precision

    return lower_precision(fp32, _request(options, fp32), folder, progress, say)


def _request(options: PrecisionOptions, source: Plan) -> Request:
    from videossm.calib.pipeline import Request

    if options.precision not in QUANTISED:
        return Request(options.precision, report=_report(options))
    calibration = _calibration(options)
    settings = None if calibration else options.calibrating.settings(source)
    return Request(options.precision, calibration, settings, options.max_error, _report(options))


def _report(options: PrecisionOptions) -> ReportKind:
    return cast("ReportKind", options.report or "short")  # checked


def _calibration(options: PrecisionOptions) -> Calibration | None:
    """What the given file holds. Raises UserError where it is damaged or for another precision."""
    if options.calibration is None:
        return None
    with export_packages("export"):
        from videossm.calib.calibration import Calibration
    calibration = Calibration.load(options.calibration)
    if calibration.precision != options.precision:
        raise UserError(
            f"--calibration: got scales for {calibration.precision}, expected {options.precision}; "
            "change --precision, or calibrate"
        )
    return calibration
