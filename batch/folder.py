"""A folder of results, on a disk or in an object store, in which every file is whole or not there."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from videossm.runtime.errors import SinkError

# Where a file appears when it is closed, or not at all; elsewhere it is renamed, which is what puts it there.
_WHOLE_ON_CLOSE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "r2", "memory"}


class Folder:
    """`url`: a path, or whatever fsspec opens, as s3://bucket/videos. Names inside it have `/` between their parts.

    A file that a killed process had half written is never seen under its name. Nothing is flushed to the disk file by
    file, as what a process has written outlives it, though not the machine.
    """

    def __init__(self, url: str) -> None:
        """Raises SinkError where fsspec does not know the protocol, or misses its package."""
        import fsspec

        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SinkError(f"output: got {url}, which fsspec cannot open ({error}); install its package") from error
        self._root = str(root).rstrip("/")
        protocol = self._files.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self._made: set[str] = set()  # folders

    @property
    def on_disk(self) -> bool:
        return bool(self._protocols & {"file", "local"})

    def path(self, name: str = "") -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A new file, in place of an older one once it is whole. Raises SinkError."""
        path = self.path(name)
        target = path if self._protocols & _WHOLE_ON_CLOSE else f"{path}.{secrets.token_hex(4)}.part"
        try:
            self._make(path.rpartition("/")[0])
            with self._files.open(target, "wb") as file:
                yield file
            if target != path:
                self._rename(target, path)
        except OSError as error:
            raise SinkError(f"output: cannot write {path} ({error.strerror or error}); choose another -o") from error

    def write(self, name: str, content: bytes | memoryview) -> None:
        with self.writing(name) as file:
            file.write(content)

    def read(self, name: str) -> bytes | None:
        """None where there is none."""
        try:
            return bytes(self._files.cat_file(self.path(name)))
        except FileNotFoundError:
            return None

    @contextmanager
    def local(self, name: str) -> Iterator[Path | None]:
        """The file as one on this machine's disk, None where there is none."""
        if self.on_disk:
            path = Path(self.path(name))
            yield path if path.is_file() else None
            return
        content = self.read(name)
        if content is None:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
            path = Path(folder) / "file"
            path.write_bytes(content)
            yield path

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A folder on this machine's disk: inside `name` of this one if that is on a disk, too."""
        if self.on_disk:
            self._make(self.path(name))
        with tempfile.TemporaryDirectory(prefix="videossm-", dir=self.path(name) if self.on_disk else None) as path:
            yield Path(path)

    def put(self, local: Path, name: str) -> None:
        """Copies the file `local` there."""
        with local.open("rb") as source, self.writing(name) as file:
            shutil.copyfileobj(source, file, 1 << 20)

    def remove(self, name: str) -> None:
        """The folder `name` with all in it, if it is there."""
        path = self.path(name)
        if self._files.exists(path):
            self._files.rm(path, recursive=True)
        self._made.discard(path)

    def names(self, name: str = "") -> set[str]:
        """Of the files in its folder `name`, in itself if none is given."""
        try:
            found = self._files.ls(self.path(name), detail=False, refresh=True)
        except FileNotFoundError:
            return set()
        return {str(file).rpartition("/")[2] for file in found}

    def _make(self, path: str) -> None:
        if path not in self._made:
            self._files.makedirs(path, exist_ok=True)
            self._made.add(path)

    def _rename(self, source: str, target: str) -> None:
        if self.on_disk:
            os.replace(source, target)
        else:
            self._files.mv(source, target)


def fetched(url: str, into: Path) -> Path:
    """A plan's folder on this machine: a path as it is, anything else copied with fsspec. Raises SinkError."""
    if "://" not in url:
        return Path(url)
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
        files.get(str(root).rstrip("/") + "/", str(into) + "/", recursive=True)
    except (ImportError, ValueError, OSError) as error:
        raise SinkError(f"plan: got {url}, which cannot be copied from there ({error}); check it") from error
    return into
