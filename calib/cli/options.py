"""The options of a command line that calibrates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from videossm.calib.options import CHUNKS, METHOD, METHODS, SIZE, CalibrationOptions


def calibration_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to `command`, which gets them as one argument `calibrating`."""

    @functools.wraps(command)
    def collected(*args: Any, **options: Any) -> Any:
        own = {field.name: options.pop(field.name) for field in fields(CalibrationOptions)}
        return command(*args, calibrating=CalibrationOptions(**own), **options)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected


_OPTIONS = (
    click.option(
        "--calibration-prompts",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Prompts to roll out, one a line. Examples that come with the model if not given.",
    ),
    click.option(
        "--calibration-size",
        type=int,
        help=f"Rollouts to record. If not given, {SIZE}, or one for each line of the file.",
    ),
    click.option("--calibration-chunks", type=int, help=f"Chunks of each rollout; {CHUNKS} if not given."),
    click.option("--calibration-method", help=f"One of {', '.join(METHODS)}; {METHOD} if not given."),
    click.option(
        "--smoothquant",
        type=float,
        metavar="ALPHA",
        help="int8: move outliers of activations into the weights; 0.5 is usual.",
    ),
    click.option("--quantize-attention", is_flag=True, help="Quantise the two products of attention as well."),
)
