"""A rollout's state on disk: one safetensors file; its metadata says which stream it is of.

The file is written under a temporary name and then renamed, so a file of its own name is always whole.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from videossm.runtime.errors import StateError
from videossm.runtime.manifest import Manifest, TensorSpec
from videossm.runtime.output_file import check_output_file, replacing

FORMAT = "videossm-state"
FORMAT_VERSION = "2"
_MOST_SHOWN = 200  # characters of a file's own words in a message
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "uint8": "U8"}

# As text: numbers beyond 2^53 are not safe in JSON.
Seed = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,19})$")]


class _Written(BaseModel):
    """The metadata `rollout`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompts: list[str]
    next_prompts: list[str] | None
    seeds: list[Seed]
    chunk: Seed


class StateHeader(BaseModel):
    """Where a stream stands."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompts: list[str]  # in force; none before the first chunk
    next_prompts: list[str] | None  # set, but not yet in force
    seeds: list[Annotated[int, Field(ge=0, lt=2**64)]]
    chunk: Annotated[int, Field(ge=0, lt=2**48)]  # the one to make next


@dataclass(frozen=True)
class Snapshot:
    """What the next chunk depends on, copied to the host, for any rollout whose plan has the same states and dtypes."""

    header: StateHeader
    tensors: dict[str, NDArray[Any]]


def check_state_path(path: str | Path, inputs: Iterable[Path] = ()) -> None:
    """Raises StateError, before any work is done, when no state could be written to `path`, or it is in `inputs`."""
    check_output_file("state", Path(path), inputs, StateError)


def save_state(path: str | Path, manifest: Manifest, header: StateHeader, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes `path` whole or not at all. Raises StateError when it cannot be written."""
    path = Path(path)
    check_output_file("state", path, error=StateError)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            write_state(file, manifest, header, tensors)
    except OSError as error:
        why = error.strerror
        raise StateError(f"state: cannot write {path} ({why}); choose a folder that exists and has room") from error


def write_state(file: BinaryIO, manifest: Manifest, header: StateHeader, tensors: Mapping[str, NDArray[Any]]) -> None:
    """What a state file holds, from where `file` stands on. Raises its OSError."""
    written = _Written(
        prompts=header.prompts,
        next_prompts=header.next_prompts,
        seeds=[str(seed) for seed in header.seeds],
        chunk=str(header.chunk),
    )
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "stream_identity": manifest.stream_identity,
        "plan_name": manifest.name,
        "rollout": written.model_dump_json(),
    }
    _write(file, metadata, manifest.kept(), tensors)


def most_state_bytes(manifest: Manifest) -> int:
    """A larger file is no state of this plan, and is not read: floats may be twice as wide as the plan's."""
    return 2 * sum(tensor.size_bytes for tensor in manifest.kept().values()) + (1 << 24)


def load_state(path: str | Path, manifest: Manifest) -> tuple[StateHeader, dict[str, NDArray[Any]]]:
    """Reads a state of a plan with the same stream, its floats converted to the dtypes of `manifest`.

    Raises StateError that says what differs, also for values that are not finite.
    """
    from safetensors import SafetensorError, deserialize, safe_open

    path, kept = Path(path), manifest.kept()
    if not path.is_file():
        raise StateError(f"state: got {path}, which is no file, expected one that --save-state wrote; check the path")
    most = most_state_bytes(manifest)
    try:
        if path.stat().st_size > most:
            raise SafetensorError(
                f"{path.stat().st_size} bytes, more than the {most} that a state of this plan can have"
            )
        with safe_open(path, "np") as file:
            header = _read_header(path, manifest, file.metadata() or {})
        found = dict(deserialize(path.read_bytes()))
    except (SafetensorError, OSError) as error:
        raise StateError(
            f"state: got {path} truncated or damaged ({_shown(error)}); resume from another one"
        ) from error
    for name in sorted(kept.keys() ^ found.keys()):
        got, expected = ("none", "one") if name in kept else ("one", "none")
        what = f"state: {path}: tensor {_shown(name)}"
        raise StateError(f"{what}: got {got}, expected {expected}; resume from another one")
    return header, {name: _converted(path, spec, found[name], header.chunk) for name, spec in kept.items()}


def _converted(path: Path, spec: TensorSpec, found: Mapping[str, Any], chunk: int) -> NDArray[Any]:
    """What the file holds of a tensor, in the plan's dtype (bfloat16 as its bits)."""
    where, code, shape = f"state: {path}: tensor {spec.name}", found["dtype"], tuple(found["shape"])
    again = "resume from another one"
    if shape != spec.shape:
        raise StateError(f"{where}: got shape {shape}, expected {spec.shape}; {again}")
    floats = ("F32", "F16", "BF16")
    expected = _CODES[spec.dtype]
    if code != expected and not (code in floats and expected in floats):
        raise StateError(f"{where}: got {code}, expected {expected}; {again}")
    dtype = next(name for name, known in _CODES.items() if known == code)
    host = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")
    values = np.frombuffer(bytes(found["data"]), host).reshape(shape).astype(host.newbyteorder("="))
    wide = _as_float32(values, dtype) if code in floats else values
    if not np.isfinite(wide).all():
        raise StateError(f"{where}: got a value that is not finite, expected numbers; {again}")
    if chunk == 0 and wide.any():
        raise StateError(f"{where}: got values before the first chunk, expected zeros; {again}")
    if dtype == spec.dtype:
        return values
    narrow = _from_float32(wide, spec.dtype)
    if not np.isfinite(_as_float32(narrow, spec.dtype)).all():
        largest = np.abs(wide).max()
        raise StateError(f"{where}: got {largest:g}, expected what {spec.dtype} can hold; resume with a plan in fp32")
    return narrow


def _as_float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Rounded to nearest, ties to even; `values` are finite."""
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _write(
    file: BinaryIO, metadata: dict[str, str], kept: Mapping[str, TensorSpec], tensors: Mapping[str, NDArray[Any]]
) -> None:
    """A safetensors file. Its package has no bfloat16 for NumPy, and another interface in each version for bytes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, spec in sorted(kept.items()):
        end = start + spec.size_bytes
        header[name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    file.write(struct.pack("<Q", len(content)) + content)
    for name in sorted(kept):
        values = tensors[name]
        file.write(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)


def check_tensors(
    where: str,
    tensors: Mapping[str, NDArray[Any]],
    expected: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
) -> None:
    """Raises StateError unless `tensors` are exactly the `expected` shapes and dtypes."""
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            got, want = found.get(name, "none"), expected.get(name, "none")
            raise StateError(f"{where}: tensor {name}: got {got}, expected {want}; resume from another one")


def _read_header(path: Path, manifest: Manifest, metadata: Mapping[str, str]) -> StateHeader:
    if metadata.get("format") != FORMAT:
        raise StateError(f"state: got {path}, a safetensors file of something else, expected what --save-state wrote")
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        got = _shown(version)
        raise StateError(f"state: {path}: format_version: got {got}, expected {FORMAT_VERSION}; save it again")
    if metadata.get("stream_identity") != manifest.stream_identity:
        got = f"one of {_shown(metadata.get('plan_name'))!r} ({_shown(metadata.get('stream_identity'))[:12]})"
        mine = f"one of {manifest.name!r} ({manifest.stream_identity[:12]})"
        raise StateError(
            f"state: {path}: stream_identity: got {got}, expected {mine}; resume with a plan of that model"
        )
    try:
        written = _Written.model_validate_json(metadata.get("rollout", ""))
        header = StateHeader(
            prompts=written.prompts,
            next_prompts=written.next_prompts,
            seeds=[int(seed) for seed in written.seeds],
            chunk=int(written.chunk),
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = _shown(".".join(["rollout", *map(str, first["loc"])]))
        message = f"got {_shown(first['input'])!r}, expected: {_shown(first['msg'])}"
        raise StateError(f"state: {path}: metadata: {field}: {message}; resume from another one") from error
    check_header(f"state: {path}: metadata", header, manifest)
    return header


def check_header(where: str, header: StateHeader, manifest: Manifest) -> None:
    """Raises StateError unless prompts and seeds are as many as the batch has streams, and the clip goes that far."""
    batch = manifest.stream.batch
    prompts = 0 if manifest.text is None else batch
    started = bool(header.chunk) or header.next_prompts is None  # before the first chunk no prompt is in force
    for field, values, expected in (
        ("prompts", header.prompts, {prompts} if started else {prompts, 0}),
        ("next_prompts", header.next_prompts, {prompts}),
        ("seeds", header.seeds, {batch}),
    ):
        if values is not None and len(values) not in expected:
            message = f"got {len(values)}, expected {max(expected)}, for the plan's batch of {batch}"
            raise StateError(f"{where}: rollout.{field}: {message}; resume from another one")
    if manifest.stream.chunks is not None and header.chunk > manifest.stream.chunks:
        message = f"got {header.chunk}, expected at most {manifest.stream.chunks}, the clip's chunks"
        raise StateError(f"{where}: rollout.chunk: {message}; resume from another one")


def _shown(value: object) -> str:
    """What a file says, as a part of one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + ".."
