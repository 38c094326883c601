"""Files in a plan's folder: regular ones only, as a link leads out of it and a pipe never ends."""

from __future__ import annotations

import stat
from pathlib import Path

from videossm.runtime.errors import PlanError

MOST_BYTES = 1 << 26  # of a file that is read into memory: a manifest, a tokenizer, a report


def require_regular(folder: Path, name: str) -> None:
    """Raises PlanError unless `name`, as `step.onnx` or `report/steps.png`, is a file in `folder`. Opens nothing."""
    path = folder
    for part in name.split("/"):
        path = path / part
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            raise PlanError(
                f"{name}: missing in {folder}, expected what manifest.json lists in files; "
                "copy or export the plan again"
            ) from None
        except OSError as error:
            raise PlanError(f"{name}: cannot be read ({error.strerror}); check its permissions") from error
        if stat.S_ISLNK(mode) or not (stat.S_ISREG(mode) if path == folder / name else stat.S_ISDIR(mode)):
            raise PlanError(f"{name}: is not a regular file in {folder}; copy the plan with its files, not with links")


def read_small(folder: Path, name: str) -> bytes:
    """All of a regular file. Raises PlanError if it cannot be read, or is longer than MOST_BYTES."""
    require_regular(folder, name)
    try:
        with (folder / name).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise PlanError(f"{name}: cannot be read ({error.strerror}); check its permissions") from error
    if len(content) > MOST_BYTES:
        raise PlanError(f"{name}: got more than {MOST_BYTES >> 20} MB, expected less; copy or export the plan again")
    return content
