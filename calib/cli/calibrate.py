"""`videossm-calibrate`: scales for a plan, from its own rollouts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from videossm.calib.cli.options import calibration_options
from videossm.calib.options import QUANTISED, CalibrationOptions
from videossm.calib.packages import export_packages
from videossm.runtime.cli import Command, print_json, progress, say
from videossm.runtime.errors import UserError
from videossm.runtime.output_file import check_output_file
from videossm.runtime.plan import Plan

if TYPE_CHECKING:  # imports NumPy: --help does without
    from videossm.calib.observers import EightBits


@click.command(cls=Command)
@click.argument("plan", type=click.Path())
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), default="calibration.json", show_default=True)
@click.option("--precision", default="int8", show_default=True, help=f"One of {', '.join(QUANTISED)}.")
@calibration_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def calibrate(plan: str, out: Path, precision: str, calibrating: CalibrationOptions, as_json: bool) -> None:
    """Rolls the fp32 PLAN out and writes the scales that `videossm-export --calibration` takes."""
    if precision not in QUANTISED:
        raise UserError(f"--precision: got {precision}, expected one of {', '.join(QUANTISED)}; choose one")
    calibrating.check(precision)
    opened = Plan.open(plan)
    prompts = calibrating.calibration_prompts
    check_output_file("-o", out, [opened.path, *([prompts] if prompts else [])])
    with export_packages("calibrate"):
        from videossm.calib.calibrate import calibrate as record
        from videossm.calib.calibrate import recorded_chunks, settings_for
        from videossm.calib.memory import check_memory
        from videossm.calib.plans import check_source
    check_source(opened)
    settings = settings_for(opened, calibrating)
    check_memory(opened)
    started = time.perf_counter()
    with progress(recorded_chunks(settings), "chunk") as bar:
        bar.set_description("calibration")
        calibration = record(opened, cast("EightBits", precision), settings, bar.update)
    calibration.save(out)
    seconds = time.perf_counter() - started
    tensors = sum(len(by_name) for by_name in calibration.tensors.values())
    if as_json:
        values = {"calibration": str(out), "precision": precision, "tensors": tensors, "seconds": seconds}
        print_json({**values, "rollouts": len(settings.seeds), "chunks": settings.chunks})
    else:
        say(f"{out}: scales of {tensors} tensors, {precision}, in {seconds:.0f} s")


if __name__ == "__main__":
    calibrate()
