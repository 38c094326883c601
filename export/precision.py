"""After the fp32 plan: the one of the precision that was asked for, made by `videossm.calib`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from videossm.calib.cli.options import CalibrationOptions
from videossm.calib.cli.packages import export_packages
from videossm.runtime.cli import progress
from videossm.runtime.errors import UserError

if TYPE_CHECKING:  # imports onnx: --help does without
    from videossm.calib.calibration import Calibration
    from videossm.calib.pipeline import Request
    from videossm.runtime import Plan

QUANTISED = ("fp8", "int8")


@dataclass(frozen=True)
class PrecisionOptions:
    """What the command line says of it. `calibration`: a file of scales; without one, they are recorded."""

    precision: str
    calibration: Path | None
    calibrating: CalibrationOptions
    max_error: float | None
    report: bool


def check_precision(options: PrecisionOptions) -> None:
    """Raises UserError for an option that the precision has no use for, or a value that is none."""
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
    _calibration(options)


def make_precision(options: PrecisionOptions, fp32: Path, folder: Path) -> dict[str, str | int | float]:
    """From the plan in `fp32` the one in the empty `folder`; returns the summary of its report, where it has one."""
    from videossm.calib.pipeline import lower_precision
    from videossm.runtime import Plan

    source = Plan.open(fp32)
    report = lower_precision(source, _request(options, source), folder, progress)
    return report.summary if report else {}


def _request(options: PrecisionOptions, source: Plan) -> Request:
    from videossm.calib.pipeline import Request

    if options.precision not in QUANTISED:
        return Request(options.precision, report=options.report)
    calibration = _calibration(options)
    settings = None if calibration else options.calibrating.settings(source)
    return Request(options.precision, calibration, settings, options.max_error, options.report)


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
