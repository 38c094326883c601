from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from videossm.calib.report import (
    AccuracyReport,
    FallbackRound,
    FullReport,
    Sensitivity,
    ShortReport,
    read_report,
)
from videossm.calib.report.html import page

SECTIONS = {  # id -> the part that it shows
    "header": "header",
    "passes": "passes",
    "guided": "guided",
    "states": "guided",
    "free_running": "free_running",
    "evaluation": "evaluation",
    "calibration_comparison": "calibration_comparison",
    "sensitivity": "sensitivity",
    "skipped": "skipped",
    "sizes": "sizes",
    "speed": "speed",
}
OPTIONAL = ("free_running", "evaluation", "calibration_comparison", "sensitivity", "skipped", "speed")
NAMES = ("passes.png", "guided.png", "states.png", "free_running.png", "sensitivity.png")
EMPTY = {"meta", "img"}  # elements without an end
HOSTILE = "<script>alert(1)</script> & \"quotes\" 'too'"


def shown(report: AccuracyReport) -> str:
    return page(report, {name: name.encode() for name in NAMES})


class Outline(HTMLParser):
    """Ids, tags and text of a page; every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "head" not in self.open:
            self.text += data


def test_every_part_has_its_section(report: FullReport) -> None:
    assert Outline(shown(report)).ids == list(SECTIONS)


def test_a_short_report_says_so_and_nothing_of_growth(short: ShortReport, report: FullReport) -> None:
    outline, full = Outline(shown(short)), Outline(shown(report))
    assert outline.ids == ["header", "passes", "guided", "states", "sensitivity", "skipped", "sizes", "speed"]
    assert "A short report" in outline.text and "A full report" in full.text
    for words in ("last / first", "per 100 chunks", "growth of that error"):
        assert words in full.text and words not in outline.text


def test_a_budget_that_held_without_ranking(report: FullReport, build_report: Callable[..., FullReport]) -> None:
    held = FallbackRound(layers=(), error_before=0.01, error_after=0.01)
    sensitivity = Sensitivity(measure="error", layers=(), budget=0.03, fallback=(held,))
    page_of_it = build_report(sensitivity=sensitivity)
    assert page_of_it.summary["layers kept back"] == "none, as all of them hold the budget"
    text = Outline(page(page_of_it, {name: b"" for name in NAMES if name != "sensitivity.png"})).text
    assert "0.0300" in text and "all 0 layers" not in text


@pytest.mark.parametrize("part", OPTIONAL)
def test_a_part_that_is_missing_has_none(build_report: Callable[..., FullReport], part: str) -> None:
    outline = Outline(shown(build_report(**{part: None})))
    assert outline.ids == [name for name, shows in SECTIONS.items() if shows != part]


def test_the_summary_comes_first(report: FullReport) -> None:
    text = Outline(shown(report)).text
    places = [text.index(label) for label in (*report.summary, "What was compared")]
    assert places == sorted(places)


def test_figures_of_every_part_are_there(report: FullReport) -> None:
    text = Outline(shown(report)).text
    for figure in (
        "Xeon (made up), 2 threads, avx2 avx512_vnni",
        "ab" * 32,
        "the plan that this report lies in",
        "a blue square stands still",
        "SmoothQuant with alpha 0.5",
        "pass 0 (sigma 1)",
        "0.0900",
        "*.value",
        "random inputs",
        "blocks.1.attn.q",
        "over the budget",
        "the last layer",
        "weights of the quantised layers",
        "1.25x",
    ):
        assert figure in text, f"got a page without {figure!r}"


def test_the_page_needs_nothing_else(report: FullReport) -> None:
    text = shown(report)
    assert not {"script", "link", "iframe"} & Outline(text).tags
    assert text.count("src=") == len(NAMES) == text.count('src="data:image/png;base64,')
    assert not re.search(r"https?://|url\(", text)


def test_texts_are_escaped(report: FullReport, build_report: Callable[..., FullReport]) -> None:
    values = report.to_dict()
    hostile = spoilt(values)
    hostile["kind"], hostile["header"]["date"] = values["kind"], values["header"]["date"]
    outline = Outline(shown(read_report(hostile)))
    assert "script" not in outline.tags
    assert outline.text.count(HOSTILE) > 30
    assert outline.ids == list(SECTIONS)


def spoilt(values: Any) -> Any:
    """With HOSTILE in place of every text, and before every name that the report has made up."""
    if isinstance(values, str):
        return HOSTILE
    if isinstance(values, list):
        return [spoilt(value) for value in values]
    if isinstance(values, dict):
        return {
            HOSTILE + key if key in ("denoise.onnx", "denoise", "colour") else key: spoilt(of)
            for key, of in values.items()
        }
    return values


def test_half_precision_without_calibration(report: FullReport, build_report: Callable[..., FullReport]) -> None:
    header = report.header.model_copy(update={"calibration": None})
    assert "SmoothQuant" not in Outline(shown(build_report(header=header))).text


def test_states_may_be_missing(report: FullReport, build_report: Callable[..., FullReport]) -> None:
    bare = report.guided.model_copy(update={"states": ()})
    assert "states" not in Outline(shown(build_report(guided=bare, free_running=bare))).ids
