"""What a command line may say of a plan's precision. Without NumPy, which --help can do without."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from videossm.calib.packages import export_packages
from videossm.runtime.errors import UserError

if TYPE_CHECKING:  # imports NumPy
    from videossm.calib.calibration import Calibration

HALF = {"fp16": "float16", "bf16": "bfloat16"}  # precision -> dtype of its tensors
QUANTISED = ("int8", "fp8")
REPORTS = ("short", "full", "none")
METHODS = ("max", "percentile", "entropy", "mse")
SIZE, CHUNKS, METHOD = 8, 24, "mse"
SEED = 1_000_000  # of the first rollout: apart from those of reports and of the evaluation


@dataclass(frozen=True)
class CalibrationOptions:
    """How scales are recorded, as given; None where not.

    `calibration_prompts`: a file of prompts. `calibration_size`: rollouts, of `calibration_chunks` each.
    `smoothquant`: alpha.
    """

    calibration_prompts: Path | None = None
    calibration_size: int | None = None
    calibration_chunks: int | None = None
    calibration_method: str | None = None
    smoothquant: float | None = None
    quantize_attention: bool = False

    @property
    def given(self) -> list[str]:
        """The options that the user gave."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        given = [name for name, value in values.items() if value is not None and value is not False]
        return [f"--{name.replace('_', '-')}" for name in given]

    @property
    def rollouts(self) -> str:
        """What would be recorded, in words."""
        size = self.calibration_size or SIZE
        every_line = self.calibration_prompts is not None and self.calibration_size is None
        rollouts = f"a rollout for each line of {self.calibration_prompts}," if every_line else f"{size} rollouts"
        return f"{rollouts} of {self.calibration_chunks or CHUNKS} chunks"

    def check(self, precision: str) -> None:
        """Raises UserError for a value that cannot be used."""
        prompts = self.calibration_prompts
        if prompts is not None and not os.path.exists(prompts):  # False, too, for a name that no file can have
            raise UserError(
                f"--calibration-prompts: got {prompts}, which does not exist, expected a text file; check the path"
            )
        for option, count in (("size", self.calibration_size), ("chunks", self.calibration_chunks)):
            if count is not None and count < 1:
                raise UserError(f"--calibration-{option}: got {count}, expected 1 or more; change it")
        if self.calibration_method not in (None, *METHODS):
            known = ", ".join(METHODS)
            raise UserError(f"--calibration-method: got {self.calibration_method}, expected one of {known}; choose one")
        if self.smoothquant is not None and not (math.isfinite(self.smoothquant) and 0 <= self.smoothquant <= 1):
            raise UserError(f"--smoothquant: got {self.smoothquant:g}, expected 0 to 1, as 0.5; change it")
        if self.smoothquant is not None and precision != "int8":
            raise UserError(f"--smoothquant: got it with {precision}, expected int8, which needs it; leave it out")


@dataclass(frozen=True)
class PrecisionOptions:
    """The precision of a plan, as given.

    `calibration`: a file of scales; without one, int8 and fp8 record them as `calibrating` says. `max_error`: largest
    mean relative error of the samples that all layers in 8 bits may cost together; None for any. `report`: one of
    REPORTS; None for short, where there is something to report.
    """

    precision: str
    calibration: Path | None = None
    calibrating: CalibrationOptions = field(default_factory=CalibrationOptions)
    max_error: float | None = None
    report: str | None = None

    def check(self) -> None:
        """Raises UserError for an option that the precision has no use for, or a value or file that cannot be used."""
        precision, calibrating, max_error = self.precision, self.calibrating, self.max_error
        calibrating.check(precision)
        given = calibrating.given + ["--max-error"] * (max_error is not None)
        if precision not in QUANTISED and (given or self.calibration):
            option = "--calibration" if self.calibration else given[0]
            raise UserError(f"{option}: got it with {precision}, expected --precision int8 or fp8; leave it out")
        if self.calibration and calibrating.given:
            raise UserError(f"{calibrating.given[0]}: got --calibration as well, expected one of them; leave one out")
        if max_error is not None and not (math.isfinite(max_error) and max_error > 0):
            raise UserError(f"--max-error: got {max_error:g}, expected more than 0, as 0.05; change it")
        if self.report not in (None, *REPORTS):
            raise UserError(f"--report: got {self.report}, expected one of {', '.join(REPORTS)}; choose one")
        if precision == "fp32" and self.report not in (None, "none"):
            raise UserError(
                f"--report: got {self.report} with fp32, expected another --precision, which a report compares with "
                "fp32; leave it out"
            )
        self.scales()

    def scales(self) -> Calibration | None:
        """What the given file holds. Raises UserError where it is damaged or for another precision."""
        if self.calibration is None:
            return None
        with export_packages("export"):
            from videossm.calib.calibration import Calibration
        calibration = Calibration.load(self.calibration)
        if calibration.precision != self.precision:
            raise UserError(
                f"--calibration: got scales for {calibration.precision}, expected {self.precision}; "
                "change --precision, or calibrate"
            )
        return calibration

    @property
    def todo(self) -> str:
        """What is done to the fp32 plan, in words that follow "It would"; empty for fp32."""
        if self.precision == "fp32":
            return ""
        parts = []
        if self.calibration:
            parts.append(f"take the scales from {self.calibration}")
        elif self.precision in QUANTISED:
            parts.append(f"record scales over {self.calibrating.rollouts}")
        report = self.report or "short"
        parts.append("add no report" if report == "none" else f"add a {report} report")
        return " and ".join(parts)
