"""A rollout's state on disk: one safetensors file, with what it belongs to in its metadata.

Written to a temporary file beside it and renamed, so a file of that name is always whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from videossm.runtime.errors import StateError
from videossm.runtime.output_file import check_output_file, replacing
from videossm.runtime.plan import Plan

FORMAT = "videossm-state"
FORMAT_VERSION = 1


class StateHeader(BaseModel):
    """Where a stream stands."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompts: list[str]  # in force; none before the first chunk
    next_prompts: list[str] | None  # set, but not yet in force
    seeds: list[Annotated[int, Field(ge=0, lt=2**64)]]
    chunk: Annotated[int, Field(ge=0, lt=2**48)]  # the one to make next


def check_state_path(path: str | Path, inputs: Iterable[Path] = ()) -> None:
    """Raises StateError, before any work is done, when no state could be written to `path`, or it is in `inputs`."""
    check_output_file("state", Path(path), inputs, StateError)


def save_state(path: str | Path, plan: Plan, header: StateHeader, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes `path` whole or not at all. Raises StateError when it cannot be written."""
    from safetensors.numpy import save_file

    path = Path(path)
    check_output_file("state", path, error=StateError)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "plan": plan.identity,
        "plan_name": plan.name,
        "rollout": header.model_dump_json(),
    }
    try:
        with replacing(path) as temporary:
            save_file(dict(tensors), temporary, metadata)
    except Exception as error:  # safetensors wraps errors of the system in its own
        why = error.strerror if isinstance(error, OSError) else error
        raise StateError(f"state: cannot write {path} ({why}); choose a folder that exists and has room") from error


def load_state(path: str | Path, plan: Plan) -> tuple[StateHeader, dict[str, NDArray[Any]]]:
    """Reads a state of `plan`. Raises StateError that says what differs."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise StateError(f"state: got {path}, which is no file, expected one that --save-state wrote; check the path")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            header = _read_header(path, plan, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise StateError(f"state: got {path} truncated or damaged ({error}); resume from another one") from error
    return header, tensors


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


def _read_header(path: Path, plan: Plan, metadata: Mapping[str, str]) -> StateHeader:
    if metadata.get("format") != FORMAT:
        raise StateError(f"state: got {path}, a safetensors file of something else, expected what --save-state wrote")
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise StateError(f"state: {path}: format_version: got {version}, expected {FORMAT_VERSION}; upgrade videossm")
    if metadata.get("plan") != plan.identity:
        got = f"one of the plan {metadata.get('plan_name')!r} ({str(metadata.get('plan'))[:12]})"
        mine = f"one of {plan.name!r} ({plan.identity[:12]})"
        raise StateError(f"state: {path}: plan: got {got}, expected {mine}; resume with the plan that wrote it")
    try:
        header = StateHeader.model_validate_json(metadata.get("rollout", ""))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["rollout", *map(str, first["loc"])])
        message = f"got {first['input']!r}, expected: {first['msg']}"
        raise StateError(f"state: {path}: metadata: {field}: {message}; resume from another one") from error
    batch = plan.manifest.stream.batch
    started = bool(header.chunk) or header.next_prompts is None  # else there is none in force yet
    for field, values in (("prompts", header.prompts), ("next_prompts", header.next_prompts), ("seeds", header.seeds)):
        if values is None or (field == "prompts" and not values and not started):
            continue
        if len(values) != batch:
            message = f"got {len(values)}, expected {batch}, the plan's batch"
            raise StateError(f"state: {path}: metadata: rollout.{field}: {message}; resume from another one")
    return header
