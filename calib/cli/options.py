"""What can be said about calibrating, on any command line that does."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from videossm.runtime.errors import UserError

if TYPE_CHECKING:  # imports onnx: --help does without
    from videossm.calib.calibration import Settings
    from videossm.calib.observers import Method
    from videossm.runtime import Plan

METHODS = ("max", "percentile", "entropy", "mse")
SIZE, CHUNKS, METHOD = 8, 24, "mse"
SEED = 1_000_000  # of the first rollout: apart from those of the evaluation


@dataclass(frozen=True)
class CalibrationOptions:
    """As given; None where not."""

    calibration_prompts: Path | None
    calibration_size: int | None
    calibration_chunks: int | None
    calibration_method: str | None
    smoothquant: float | None
    quantize_attention: bool

    @property
    def given(self) -> list[str]:
        """The options that the user gave."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        given = [name for name, value in values.items() if value is not None and value is not False]
        return [f"--{name.replace('_', '-')}" for name in given]

    @property
    def rollouts(self) -> str:
        """What would be recorded, in words."""
        every_line = self.calibration_prompts is not None and self.calibration_size is None
        rollouts = f"a rollout for each line of {self.calibration_prompts}," if every_line else f"{self._size} rollouts"
        return f"{rollouts} of {self.calibration_chunks or CHUNKS} chunks"

    @property
    def _size(self) -> int:
        """The number of rollouts, where no file says it."""
        return self.calibration_size or SIZE

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

    def settings(self, plan: Plan) -> Settings:
        """With prompts for `plan`. Raises PromptError."""
        from videossm.calib.calibration import Settings
        from videossm.calib.prompts import default_prompts, read_prompts

        if self.calibration_prompts is None:
            prompts = default_prompts(plan, self._size, SEED)
        else:
            given = read_prompts(self.calibration_prompts, plan)
            prompts = tuple(given[i % len(given)] for i in range(self.calibration_size or len(given)))
        return Settings(
            method=cast("Method", self.calibration_method or METHOD),  # checked
            prompts=prompts,
            seeds=tuple(range(SEED, SEED + len(prompts))),
            chunks=self.calibration_chunks or CHUNKS,
            data="rollouts",
            smoothquant=self.smoothquant,
            quantize_attention=self.quantize_attention,
        )


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
        help="Prompts to roll out, one a line. The preset's own kind if not given.",
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
