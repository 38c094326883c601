"""Where a command may write: a new name or a regular file, none that it reads, and nothing in a plan.

All is checked before any work is done, and none of the checks changes anything.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from videossm.runtime.errors import UserError
from videossm.runtime.manifest import MANIFEST_FILE
from videossm.runtime.plan_file import MOST_BYTES

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def check_output_file(what: str, path: Path, inputs: Iterable[Path] = (), error: type[UserError] = UserError) -> None:
    """Raises `error`, beginning with `what`, unless a file can be written at `path`, in place of an older one.

    `inputs`: files and folders that the command reads; neither they nor what is in them is replaced.
    """
    with _told(what, path, error):
        kind = _kind(path)
        if kind not in (None, stat.S_IFREG):
            got = _KINDS.get(kind, "no file")
            raise error(f"{what}: got {path}, which is {got}, expected a regular file or a new name; choose another")
        _check_place(what, path, inputs, error)


def check_output_folder(what: str, path: Path, inputs: Iterable[Path] = (), error: type[UserError] = UserError) -> None:
    """Raises `error` unless files can be written in the folder `path`, which may not be there yet. As above."""
    with _told(what, path, error):
        if path.exists() and not path.is_dir():
            raise error(f"{what}: got {path}, which is a file, expected a folder or a new name; choose another")
        if path.is_symlink() and not path.exists():
            raise error(f"{what}: got {path}, a link that leads nowhere, expected a folder; choose another")
        _check_place(what, path, inputs, error)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write into, which takes its place at the end, whole and on the disk.

    Its name is no other's, so two writers do not meet: the last one's file stays. It has the permissions that the
    umask gives a new file. After an error it is gone. Raises OSError.
    """
    temporary = path.with_name(f".videossm-{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        permissions = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        yield temporary
        temporary.chmod(permissions)  # safetensors puts a file of its own there, which is for the owner alone
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def plan_around(path: Path) -> Path | None:
    """The plan that `path` is, or lies in; or None."""
    place = path.resolve()
    return next((folder for folder in (place, *place.parents) if _is_plan(folder)), None)


@contextmanager
def _told(what: str, path: Path, error: type[UserError]) -> Iterator[None]:
    """The system's errors as `error`; ValueError: a name with a zero byte."""
    try:
        yield
    except (OSError, ValueError) as found:
        why = found.strerror if isinstance(found, OSError) else found
        raise error(f"{what}: cannot write {path} ({why}); choose a place that is writable and has room") from found


def _check_place(what: str, path: Path, inputs: Iterable[Path], error: type[UserError]) -> None:
    """That of a file or folder `path`. Raises `error` and OSError."""
    place = path.resolve()
    if not place.parent.is_dir():
        raise error(f"{what}: got {path}, whose folder does not exist, expected one that does; make it first")
    for given in inputs:
        if place == given.resolve() or given.resolve() in place.parents or (place.exists() and _same(place, given)):
            raise error(
                f"{what}: got {path}, which this command uses already ({given}), expected another place; choose one"
            )
    plan = plan_around(path)
    if plan is not None:
        raise error(f"{what}: got {path}, which lies in the plan {plan}, expected a place outside; choose one")
    with tempfile.TemporaryFile(dir=place if place.is_dir() else place.parent):
        pass


def _same(path: Path, other: Path) -> bool:
    """One file under two names."""
    return other.exists() and path.samefile(other)


def _kind(path: Path) -> int | None:
    """The type of the file `path` itself, not of what it leads to; None if there is none. Raises OSError."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return None


def _is_plan(folder: Path) -> bool:
    manifest = folder / MANIFEST_FILE
    try:
        if not stat.S_ISREG(manifest.lstat().st_mode) or manifest.stat().st_size > MOST_BYTES:
            return False
        values = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.keys() >= {"schema_version", "engines", "files"}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
