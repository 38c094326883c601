"""calibration.json: the scales of a plan's activations, what they were recorded from, and how.

Unknown fields are refused. It belongs to one fp32 plan: `check` compares the plan's name and its engines' files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from videossm.calib.observers import FORMATS, EightBits, Method
from videossm.runtime import Plan, UserError
from videossm.runtime.output_file import replacing

_RELATIVE = 1e-6  # between a scale and its amax: either may have been rounded to fp32

Name = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Runtimes keep scales in fp32, where less is subnormal, and zero on hardware that flushes it.
Scale = Annotated[float, Field(ge=float(np.finfo(np.float32).tiny), le=float(np.finfo(np.float32).max))]


class CalibrationError(UserError):
    """A calibration that cannot be read or written, contradicts itself, or is of another plan."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Source(_Part):
    """The fp32 plan that was recorded."""

    name: Name
    engines: dict[Name, Sha256]  # of those that are quantised: see `engine_sha256`

    @staticmethod
    def of(plan: Plan, engines: Iterable[str]) -> Source:
        """Raises CalibrationError when the plan lacks one of the engines."""
        return Source(name=plan.name, engines={engine: engine_sha256(plan, engine) for engine in engines})


class Settings(_Part):
    """How it was recorded: one rollout of `chunks` chunks for each of `seeds`, with its prompt where there is text."""

    method: Method
    prompts: tuple[str, ...] | None
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**64)], ...]
    chunks: PositiveInt
    data: Literal["rollouts", "first-chunks", "random"]
    smoothquant: Annotated[float, Field(ge=0, le=1)] | None  # alpha
    quantize_attention: bool


class PassRange(_Part):
    """What one tensor reached in one pass of a chunk, over all chunks and rollouts.

    `index`: of the pass, `value`: its first scalar; both null in an engine that passes do not run.
    """

    index: NonNegativeInt | None
    value: float | None
    amax: NonNegativeFloat
    mean_square: NonNegativeFloat


class TensorScale(_Part):
    """The codes for values up to `amax`, as `Format.codes` has them. `passes`: those of the engine, in their order.

    `low`: the smallest value of a tensor whose values lie almost all on one side of 0, as GELU's do; else null, and the
    codes are symmetric.
    """

    amax: Scale
    low: Annotated[float, Field(le=0)] | None
    scale: Scale
    zero_point: Annotated[int, Field(ge=-128, le=127)]
    passes: tuple[PassRange, ...]
    channel_amax: tuple[NonNegativeFloat, ...] | None  # [K], of what SmoothQuant rescales


class Calibration(_Part):
    """The whole of calibration.json. `tensors`: by engine and by the tensor's name in that engine's fp32 graph."""

    format: Literal["videossm-calibration"]
    version: Literal[2]
    precision: EightBits
    source: Source
    settings: Settings
    tensors: dict[Name, dict[Name, TensorScale]]

    @model_validator(mode="after")
    def _scales_follow_from_amax(self) -> Calibration:
        for engine, tensors in self.tensors.items():
            if engine not in self.source.engines:
                known = ", ".join(self.source.engines)
                raise _damaged(f"tensors: got the engine {engine}, expected one of source.engines ({known})")
            for name, tensor in tensors.items():
                expected = FORMATS[self.precision].codes(tensor.amax, tensor.low)
                if not math.isclose(tensor.scale, expected.scale, rel_tol=_RELATIVE):
                    raise _damaged(
                        f"tensors.{engine}.{name}.scale: got {tensor.scale:.7g}, expected {expected.scale:.7g}, "
                        f"which stands for amax {tensor.amax:.7g} in {self.precision}"
                    )
                if tensor.zero_point != expected.zero_point:
                    raise _damaged(
                        f"tensors.{engine}.{name}.zero_point: got {tensor.zero_point}, expected "
                        f"{expected.zero_point}, which follows from low {tensor.low} and amax {tensor.amax:.7g}"
                    )
        return self

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Raises CalibrationError, naming the field, when the file cannot be read or does not hold together."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise CalibrationError(
                f"calibration: got {path}, which cannot be read ({error.strerror}), expected a calibration.json; "
                "check the path"
            ) from error
        try:
            return Calibration.model_validate_json(content)
        except ValidationError as error:
            raise _damaged(_first_error(error)) from error

    def save(self, path: str | Path) -> None:
        """Writes `path` whole or not at all. Raises CalibrationError when it cannot be written."""
        path = Path(path)
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        try:
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CalibrationError(
                f"calibration: cannot write {path} ({error.strerror}); choose a folder that exists and has room"
            ) from error

    def check(self, plan: Plan) -> None:
        """Raises CalibrationError, saying what differs, unless it was recorded from `plan` or an equal one."""
        if plan.name != self.source.name:
            raise CalibrationError(
                f"calibration: got one of the plan {self.source.name!r}, expected one of {plan.name!r}; "
                "choose another or calibrate this plan"
            )
        for engine, recorded in self.source.engines.items():
            sha256 = engine_sha256(plan, engine)
            if sha256 != recorded:
                raise CalibrationError(
                    f"calibration: source.engines.{engine}: got sha256 {recorded[:16]}.., expected {sha256[:16]}.., "
                    "that of this plan (other weights, sizes or options); calibrate this plan"
                )

    def check_tensors(self, engine: str, names: Iterable[str]) -> None:
        """Raises CalibrationError naming the first of `names` that it has no scale for."""
        for name in names:
            if name not in self.tensors.get(engine, {}):
                raise CalibrationError(
                    f"calibration: tensors.{engine}: got no {name}, expected its scale; calibrate this plan again, "
                    "with the same options"
                )


def engine_sha256(plan: Plan, engine: str) -> str:
    """SHA-256 of an engine's ONNX file; where its weights lie in a file beside it, that of both files' SHA-256.

    Raises CalibrationError when the plan has no such engine.
    """
    engines = plan.manifest.engines
    if engine not in engines:
        raise CalibrationError(
            f"calibration: got the engine {engine}, expected one of the plan's ({', '.join(engines)}); "
            "calibrate this plan"
        )
    files, name = plan.manifest.files, engines[engine].file
    if (weights := files.get(f"{name}.data")) is None:  # as videossm-export names it
        return files[name].sha256
    return hashlib.sha256(f"{files[name].sha256} {weights.sha256}".encode()).hexdigest()


def _damaged(what: str) -> CalibrationError:
    return CalibrationError(f"calibration: {what}; restore the file or calibrate again")


def _first_error(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]") or "the whole"
    if first["type"] == "json_invalid":
        return f"got no valid JSON ({first['ctx']['error']})"
    if first["type"] == "extra_forbidden":
        return f"{field}: got an unknown field, expected only those of version 2"
    if first["type"] == "missing":
        return f"{field}: got nothing, expected this field"
    got = repr(first["input"])
    return f"{field}: got {got if len(got) <= 60 else got[:57] + '...'}, expected: {first['msg']}"
