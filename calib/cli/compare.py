"""`videossm-compare`: the accuracy report on any two plans of one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from videossm.calib.packages import export_packages
from videossm.runtime.cli import Command, print_json, print_text, progress, say
from videossm.runtime.errors import UserError
from videossm.runtime.manifest import REPORT_FILE, REPORT_FOLDER
from videossm.runtime.output_file import check_output_file, check_output_folder
from videossm.runtime.plan import Plan


@click.command(cls=Command)
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    default="comparison",
    show_default=True,
    help="Folder for report.json, and report/ with the page and its pictures.",
)
@click.option("--chunks", default=200, show_default=True, help="Of each rollout.")
@click.option(
    "--evaluation/--no-evaluation",
    default=True,
    show_default=True,
    help="Also judge what the videos show, where the model is one that can be judged.",
)
@click.option("--json", "as_json", is_flag=True, help="Print report.json on stdout.")
def compare(a: str, b: str, out: Path, chunks: int, evaluation: bool, as_json: bool) -> None:
    """Rolls plans A and B out side by side and makes the full report on what B costs against A."""
    if chunks < 2:
        raise UserError(f"--chunks: got {chunks}, expected 2 or more; change it")
    first, second = Plan.open(a), Plan.open(b)
    _check_out(out, [first.path, second.path])
    with export_packages("compare"):
        from videossm.calib.assess import Origin, full_report, report_inputs
        from videossm.calib.memory import check_memory
        from videossm.calib.plans import require_graphs
        from videossm.calib.report import write_report
    for plan in (first, second):
        require_graphs(plan)
        check_memory(plan)
    report = full_report(first, second, report_inputs(first, chunks), Origin(), progress, say, evaluation)
    try:
        out.mkdir(exist_ok=True)
        write_report(report, out)
    except OSError as error:
        raise UserError(f"-o: cannot write {out} ({error.strerror}); choose a place that has room") from error
    if as_json:
        print_json(report.to_dict())
    else:
        print_text("\n".join(f"{label:<22} {value}" for label, value in report.summary.items()))


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    """Raises UserError unless a report can be written into `out`, where an older one is replaced."""
    check_output_folder("-o", out, inputs)
    if out.is_dir():
        shown = out / REPORT_FOLDER
        check_output_folder("-o", shown)
        for path in (out / REPORT_FILE, *(shown.iterdir() if shown.is_dir() else ())):
            check_output_file("-o", path)


if __name__ == "__main__":
    compare()
