"""report.json as validated models, short or full: what a plan of lower precision costs against the fp32 plan.

What it consists of, and what its figures mean, is in `videossm.calib.report.parts`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from videossm.calib.report.growth import mean
from videossm.calib.report.parts import (
    CalibrationRow,
    Course,
    Header,
    LongCourse,
    Name,
    Part,
    PassError,
    Score,
    Sensitivity,
    Sizes,
    SkippedLayer,
    Speed,
)
from videossm.calib.report.summary import summarise
from videossm.runtime.errors import UserError


class ReportError(UserError):
    """A report that is damaged or of another version, or that cannot be drawn."""


class _Report(Part):
    """What reports of both kinds have. A part that is None or empty is not shown.

    `guided`: each chunk of B starts from A's state, so it shows what one chunk adds; its `states` are those that B
    keeps of its own when it is given A's clean samples. `summary`: labels and what stands beside them, for
    `videossm-inspect` and the top of the page; made of the other parts where it is left empty.
    """

    schema_version: Literal[3] = 3
    summary: dict[Name, str | int | float] = Field(default_factory=dict)
    header: Header
    passes: Annotated[tuple[PassError, ...], Field(min_length=1)]
    guided: Course
    sensitivity: Sensitivity | None = None
    skipped: tuple[SkippedLayer, ...] = ()
    sizes: Sizes
    speed: Speed | None = None

    @property
    def worst_pass(self) -> PassError:
        """That of the largest mean relative error of the sample; one that commits counts only if there is no other."""
        denoising = [each for each in self.passes if not each.commits]
        return max(denoising or self.passes, key=lambda each: each.relative_error.mean)

    @property
    def guided_error(self) -> float | None:
        """Mean over the chunks of the samples' relative error."""
        return mean(self.guided.relative_error)

    @model_validator(mode="after")
    def _summarise(self) -> _Report:
        if not self.summary:
            object.__setattr__(self, "summary", summarise(cast("AccuracyReport", self)))  # of one kind or the other
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return self.model_dump(mode="json")


class ShortReport(_Report):
    """The whole of a short report.json: some chunks past the window, of which nothing says whether an error grows."""

    kind: Literal["short"] = "short"


class FullReport(_Report):
    """The whole of a full report.json. `free_running`: B has its own trajectory."""

    kind: Literal["full"] = "full"
    guided: LongCourse
    free_running: LongCourse | None = None
    evaluation: tuple[Score, ...] = ()
    calibration_comparison: tuple[CalibrationRow, ...] = ()


AccuracyReport = ShortReport | FullReport
_READER: TypeAdapter[AccuracyReport] = TypeAdapter(Annotated[AccuracyReport, Field(discriminator="kind")])


def read_report(values: Mapping[str, Any]) -> AccuracyReport:
    """From plain JSON types. Raises ReportError, naming the field, for what is missing, unknown or of another type."""
    try:
        return _READER.validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "the whole"  # the first names the kind
        got = repr(first["input"])
        got = got if len(got) <= 60 else got[:57] + "..."
        message = f"report.json: {field}: got {got}, expected: {first['msg']}; write the report again"
        raise ReportError(message) from None
