from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from videossm.calib.report import FullReport, ReportError, read_report, write, write_report
from videossm.calib.report.html import page

NAMES = ("passes.png", "guided.png", "states.png", "free_running.png", "sensitivity.png")
PICTURES = {name: name.encode() for name in NAMES}


def test_what_is_written(report: FullReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "draw", lambda drawn: PICTURES if drawn is report else {})
    write_report(report, tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"report.json", "report/report.html", *(f"report/{name}" for name in NAMES)}
    assert {name: (tmp_path / "report" / name).read_bytes() for name in PICTURES} == PICTURES
    values = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert read_report(values) == report
    assert values["summary"] == report.summary
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert html == page(report, PICTURES)


def test_nothing_is_written_without_matplotlib(
    report: FullReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError):
        write_report(report, tmp_path)
    assert list(tmp_path.iterdir()) == []
