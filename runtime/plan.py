"""A plan: a folder with a manifest, engines and a tokenizer. Opened strictly, written with `write_manifest`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from videossm.runtime.contract import check_contract
from videossm.runtime.errors import PlanError, shown
from videossm.runtime.graph_file import check_graphs
from videossm.runtime.manifest import MANIFEST_FILE, REPORT_FOLDER, SCHEMA_VERSION, TOKENIZER_FILE, File, Manifest
from videossm.runtime.plan_file import read_small, require_regular

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Plan:
    """A plan whose manifest, sizes and hashes have been verified."""

    path: Path
    manifest: Manifest
    identity: str  # SHA-256 of manifest.json, which holds the SHA-256 of every other file

    @staticmethod
    def open(path: str | Path) -> Plan:
        """Opens a plan by its folder, or by any file in it.

        Every file that the manifest lists must be there with its size and SHA-256; other files in the
        folder are never read. Raises PlanError, naming the file and the field.
        """
        folder = _folder(Path(path))
        manifest, identity = _read_manifest(folder)
        for name, file in manifest.files.items():
            _verify_file(folder, name, file.size_bytes, file.sha256)
        check_graphs(folder, manifest)
        return Plan(folder, manifest, identity)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def tokenizer_file(self) -> Path:
        return self.path / TOKENIZER_FILE

    @property
    def chunk_seconds(self) -> float:
        """Length of one chunk of video."""
        return self.manifest.stream.frames_per_chunk / self.manifest.stream.fps


def write_manifest(directory: Path, manifest: Mapping[str, Any], hashed: Mapping[str, File] | None = None) -> Plan:
    """Hashes every file in `directory`, those in folders too, and writes manifest.json. Returns the plan, as if opened.

    `manifest` is the whole manifest but for `files`. `hashed`: files by name that have not changed since their hash
    was taken, so that it need not be taken again. Raises PlanError when the manifest does not hold together; then
    nothing is written.
    """
    known = hashed or {}
    files = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST_FILE:
            sha256 = known[name].sha256 if name in known else _sha256(path)
            files[name] = {"sha256": sha256, "size_bytes": path.stat().st_size}
    content = (json.dumps({**manifest, "files": files}, indent=1) + "\n").encode()
    checked = _parse(content)
    (directory / MANIFEST_FILE).write_bytes(content)
    return Plan(directory, checked, hashlib.sha256(content).hexdigest())


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


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    content = read_small(folder, MANIFEST_FILE)
    return _parse(content), hashlib.sha256(content).hexdigest()


def _parse(content: bytes) -> Manifest:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{MANIFEST_FILE}: got no valid JSON ({error}); copy or export the plan again") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise PlanError(
            f"{MANIFEST_FILE}: schema_version: got {version}, expected at most {SCHEMA_VERSION}; "
            "upgrade videossm, or export the plan with this version"
        )
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise PlanError(_first_error(error)) from error
    check_contract(manifest)
    return manifest


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]") or "the whole"
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
    return f"{MANIFEST_FILE}: {field}: {why}; export the plan again"


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
