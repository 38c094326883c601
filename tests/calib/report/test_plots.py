from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from videossm.calib.report import (
    Course,
    FullReport,
    LongCourse,
    ReportError,
    Sensitivity,
    ShortReport,
    StateErrors,
)
from videossm.calib.report.plots import DPI, WIDTH, course_png, draw, passes_png, sensitivity_png, states_png


def check(picture: bytes) -> Image.Image:
    """A whole PNG of the pictures' width that is not blank."""
    with Image.open(io.BytesIO(picture)) as image:
        image.verify()
    image = Image.open(io.BytesIO(picture))
    assert (image.format, image.width) == ("PNG", round(WIDTH * DPI))
    assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20, "the picture is blank"
    return image


def test_every_part_has_its_picture(report: FullReport) -> None:
    pictures = draw(report)
    assert list(pictures) == ["passes.png", "guided.png", "states.png", "free_running.png", "sensitivity.png"]
    for picture in pictures.values():
        check(picture)


def test_a_short_report_has_those_of_its_parts(short: ShortReport) -> None:
    assert list(draw(short)) == ["passes.png", "guided.png", "states.png", "sensitivity.png"]


def test_only_a_long_course_shows_its_growth(short: ShortReport, report: FullReport) -> None:
    assert course_png(short.guided, "title") != course_png(report.guided, "title")


def test_the_same_report_makes_the_same_picture(report: FullReport) -> None:
    assert passes_png(report.passes) == passes_png(report.passes)


def test_parts_that_are_missing_have_none(build_report: Callable[..., FullReport], report: FullReport) -> None:
    bare = build_report(guided=report.guided.model_copy(update={"states": ()}), free_running=None, sensitivity=None)
    assert list(draw(bare)) == ["passes.png", "guided.png"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "errors",
    [(0.0,) * 30, (0.5,), (None,) * 5, (1e-6, 1.0) * 20],
    ids=["no error", "one chunk", "nothing defined", "six decades"],
)
def test_courses_at_the_limits(errors: Any) -> None:
    state = StateErrors(kind="*.carried", layer=0, relative_error=errors, cosine=errors)
    for kind in (Course, LongCourse):
        course = kind(relative_error=errors, cosine=errors, psnr_db=(None,) * len(errors), states=(state,))
        check(course_png(course, "title"))
        check(states_png(course))


@pytest.mark.filterwarnings("error")
def test_more_kinds_of_state_than_a_row_holds(report: FullReport) -> None:
    states = tuple(
        state.model_copy(update={"kind": f"{state.kind} {place}"}) for place, state in enumerate(report.guided.states)
    )
    assert check(states_png(report.guided.model_copy(update={"states": states}))).height > 600


@pytest.mark.filterwarnings("error")
def test_many_layers(report: FullReport) -> None:
    assert report.sensitivity is not None
    first = report.sensitivity.layers[0]
    layers = tuple(first.model_copy(update={"rank": rank, "error": 1 / rank**3}) for rank in range(1, 300))
    many = Sensitivity(measure="error", layers=layers, budget=None, fallback=())
    assert check(sensitivity_png(many)).height < 1200


def test_without_matplotlib(report: FullReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match=r"pip install 'videossm\[export\]'"):
        draw(report)
