"""Where a plan goes: it is made in a folder beside its place and moved there when it is whole."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from videossm.runtime.errors import PlanError
from videossm.runtime.manifest import MANIFEST_FILE, REPORT_FOLDER
from videossm.runtime.output_file import plan_around


def check_out(out: Path, force: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Raises PlanError unless a plan can be written at `out`; asked before minutes are spent.

    `force`: in place of an older plan. `inputs`: what the command reads, which stays.
    """
    try:
        place = out.resolve()
        if place.exists() and not _is_plan(place):
            raise PlanError(f"output: got {out}, which exists and is no plan, expected a new name; choose another -o")
        if place.exists() and not force:
            raise PlanError(
                f"output: got {out}, which is there already, expected a new name; "
                "choose another -o, or add --force to replace it"
            )
        for given in inputs:
            if place in (given.resolve(), *given.resolve().parents):
                raise PlanError(f"output: got {out}, but {given} in it is read, expected a new name; choose another -o")
        if not place.parent.is_dir():
            raise PlanError(f"output: got {out}, whose folder does not exist, expected one that does; make it first")
        if (plan := plan_around(place.parent)) is not None:
            raise PlanError(f"output: got {out}, which lies in the plan {plan}, expected a place outside; choose one")
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise _cannot_write(out, error) from None


@contextmanager
def new_plan(out: Path, force: bool = False) -> Iterator[Path]:
    """An empty folder to make a plan in, which takes the place of `out` at the end.

    With `force` an older plan may be there, which stays until then, and stays for good if anything fails. Raises
    PlanError when `out` is there and may not be replaced, or cannot be written.
    """
    check_out(out, force)
    place = out.resolve()
    try:
        with tempfile.TemporaryDirectory(prefix=".videossm-", dir=place.parent) as temporary:
            folder = Path(temporary, "new")
            folder.mkdir()
            yield folder
            check_out(out, force)  # another export may have ended meanwhile
            _swap(folder, place, Path(temporary, "old"))
    except OSError as error:
        raise _cannot_write(out, error) from None


def _swap(folder: Path, place: Path, old: Path) -> None:
    if place.exists():
        place.rename(old)
    try:
        folder.rename(place)
    except BaseException:
        if old.exists():
            old.rename(place)
        raise


def _is_plan(folder: Path) -> bool:
    """Whether nothing but a plan would be lost with `folder`."""
    try:
        listed = json.loads((folder / MANIFEST_FILE).read_bytes())["files"]
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        return found <= {MANIFEST_FILE, REPORT_FOLDER, *listed}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _cannot_write(out: Path, error: OSError) -> PlanError:
    return PlanError(
        f"output: got {out}, which cannot be written ({error.strerror}), expected room for a plan; mend it"
    )
