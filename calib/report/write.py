"""A report into the folder of a plan."""

from __future__ import annotations

import json
from pathlib import Path

from videossm.calib.report.html import page
from videossm.calib.report.plots import draw
from videossm.calib.report.schema import AccuracyReport
from videossm.runtime.manifest import REPORT_FILE, REPORT_FOLDER

PAGE_FILE = "report.html"


def write_report(report: AccuracyReport, folder: Path) -> None:
    """Writes report.json, and report/ with the pictures and one page, into `folder`, which exists.

    Raises ReportError where matplotlib is missing, before anything is written, and OSError.
    """
    pictures = draw(report)
    shown = folder / REPORT_FOLDER
    shown.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (shown / name).write_bytes(picture)
    (shown / PAGE_FILE).write_text(page(report, pictures), encoding="utf-8")
    (folder / REPORT_FILE).write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
