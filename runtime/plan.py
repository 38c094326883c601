"""A plan: a folder with a manifest, engines and a tokenizer. Opened strictly, written with `write_manifest`."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from videossm.runtime.contract import check_contract
from videossm.runtime.errors import ManifestError, PlanError, shown
from videossm.runtime.graph_file import check_graphs
from videossm.runtime.manifest import MANIFEST_FILE, REPORT_FOLDER, SCHEMA_VERSION, TOKENIZER_FILE, File, Manifest
from videossm.runtime.plan_file import read_small, require_regular

_BLOCK_BYTES = 1 << 20
_MOST_SHOWN = 200  # characters of a manifest's own words in a message
_NO_DIGITS = "0" * 64
_END = '"\n}\n'  # of every manifest, after the digits of its checksum


@dataclass(frozen=True)
class Plan:
    """A plan whose manifest, sizes and hashes have been verified."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: str | Path) -> Plan:
        """Opens a plan by its folder, or by any file in it.

        Every file that the manifest lists must be there with its size and SHA-256; other files in the
        folder are never read. Raises PlanError, naming the file and the field.
        """
        folder = _folder(Path(path))
        manifest = _read_manifest(folder)
        for name, file in manifest.files.items():
            _verify_file(folder, name, file.size_bytes, file.sha256)
        check_graphs(folder, manifest)
        return Plan(folder, manifest)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def identity(self) -> str:
        """The manifest's checksum, which depends on the SHA-256 of every other file."""
        return self.manifest.checksum

    @property
    def tokenizer_file(self) -> Path:
        return self.path / TOKENIZER_FILE

    def values(self) -> dict[str, Any]:
        """The manifest as plain JSON types, to be edited and given to `write_manifest`."""
        return self.manifest.model_dump(mode="json", exclude={"files", "checksum"})


def write_manifest(directory: Path, values: Mapping[str, Any], hashed: Mapping[str, File] | None = None) -> Plan:
    """Hashes all files in `directory`, those in folders too, and writes manifest.json. Returns the plan, as if opened.

    `values` is the whole manifest; `files` and `checksum` are made anew. `hashed`: files by name that have not changed
    since their hash was taken, so that it need not be taken again. Raises PlanError when the manifest does not hold
    together; then nothing is written.
    """
    known = hashed or {}
    files = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST_FILE:
            sha256 = known[name].sha256 if name in known else _sha256(path)
            files[name] = {"sha256": sha256, "size_bytes": path.stat().st_size}
    others = {name: value for name, value in values.items() if name not in ("files", "checksum")}
    text = json.dumps({**others, "files": files, "checksum": _NO_DIGITS}, indent=1) + "\n"
    before, after = text[: -len(_NO_DIGITS + _END)].encode(), _END
    content = before + (hashlib.sha256(before).hexdigest() + after).encode()
    manifest = _parse(content)
    (directory / MANIFEST_FILE).write_bytes(content)
    return Plan(directory, manifest)


def _folder(path: Path) -> Path:
    if path.is_file():
        path = path.parent
        if path.name == REPORT_FOLDER and not (path / MANIFEST_FILE).is_file():
            path = path.parent
    if not path.is_dir():
        raise PlanError(
            f"plan: got {path}, which does not exist, expected a folder that videossm-export wrote; check it"
        )
    if not os.path.lexists(path / MANIFEST_FILE):
        raise PlanError(
            f"{MANIFEST_FILE}: missing in {path}, expected a folder that videossm-export wrote; check the path"
        )
    return path


def _read_manifest(folder: Path) -> Manifest:
    return _parse(read_small(folder, MANIFEST_FILE))


def _parse(content: bytes) -> Manifest:
    try:
        values = json.loads(
            content.decode("utf-8"), object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite
        )
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{MANIFEST_FILE}: got no valid JSON ({error}); copy or export the plan again") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        do = "upgrade videossm" if version > SCHEMA_VERSION else "export the plan again"
        raise PlanError(f"{MANIFEST_FILE}: schema_version: got {version}, expected {SCHEMA_VERSION}; {do}")
    manifest = validated(content)
    _check_sum(manifest, content)
    check_contract(manifest)
    return manifest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers of JSON differ in which of two equal keys they take."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:60]!r} twice in one object")
    return values


def _finite(text: str) -> float:
    """JSON has no NaN and no infinity, though Python reads them."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]}, which is no finite number")
    return value


def validated(content: bytes) -> Manifest:
    """The manifest of its JSON, each field by itself. Raises ManifestError."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise _first_error(error) from error


def _check_sum(manifest: Manifest, content: bytes) -> None:
    """The file ends in the checksum's digits and `_END`; they are the SHA-256 of all bytes before them."""
    end = len(content) - len(_NO_DIGITS + _END)
    if content[end:] != (manifest.checksum + _END).encode():
        raise PlanError(f"{MANIFEST_FILE}: checksum: got it elsewhere, expected it at the end; export the plan again")
    found = hashlib.sha256(content[:end]).hexdigest()
    if found != manifest.checksum:
        got = f"{manifest.checksum[:16]}.., but the content has {found[:16]}.. (altered)"
        raise PlanError(f"{MANIFEST_FILE}: checksum: got {got}, expected the same; copy or export the plan again")


def _first_error(error: ValidationError) -> ManifestError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]") or "the whole"
    field = " ".join(field.split())[:_MOST_SHOWN]
    got = shown(first["input"])
    if first["type"] == "extra_forbidden":
        why = f"got an unknown field, expected only those of schema version {SCHEMA_VERSION}"
    elif first["type"] == "missing":
        why = "got nothing, expected this field"
    elif first["type"] == "string_pattern_mismatch" and (field.endswith(".file") or "[key]" in first["loc"]):
        also = f", or one in {REPORT_FOLDER}/" if "[key]" in first["loc"] else ""
        why = f"got {got}, expected a bare file name inside the plan{also}"
    else:
        why = f"got {got}, expected: {first['msg']}"
    return ManifestError(field, why)


def _verify_file(folder: Path, name: str, size_bytes: int, sha256: str) -> None:
    path = folder / name
    mend = "copy or export the plan again"
    require_regular(folder, name)
    try:
        size = path.stat().st_size
        if size != size_bytes:
            raise PlanError(f"{name}: size_bytes: got {size}, expected {size_bytes}; {mend}")
        digest = _sha256(path)
    except OSError as error:
        raise PlanError(f"{name}: cannot be read ({error.strerror}); check its permissions") from error
    if digest != sha256:
        raise PlanError(f"{name}: sha256: got {digest[:16]}.., expected {sha256[:16]}.. (altered); {mend}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
