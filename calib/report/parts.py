"""The parts of report.json, as validated models.

A is the fp32 plan, B the plan that is judged. A relative error is ||b - a|| / ||a||, a cosine that of both as flat
vectors. A `Series` has one value a chunk: None where it is undefined (a state of A that is still zero, the PSNR of
equal frames). NaN and infinity are refused: a plan that makes them has no report.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from videossm.calib.report.growth import Growth, Series, growth
from videossm.runtime.processor import Processor

Name = Annotated[str, Field(min_length=1, max_length=200)]
Error = Annotated[float, Field(ge=0)]
Cosine = Annotated[float, Field(ge=-1.0001, le=1.0001)]  # rounding may pass 1 by a little
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0)]
Errors = tuple[Error | None, ...]
Cosines = tuple[Cosine | None, ...]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Device(Part):
    """`name`: the CPU's model as the system calls it; `features`: those of it that decide how int8 is computed."""

    name: Name
    threads: PositiveInt
    features: tuple[Name, ...]

    @property
    def text(self) -> str:
        return Processor(self.name, self.features).text(self.threads)


class PlanFacts(Part):
    """`identity` is None for the plan that the report lies in: it is the hash of a manifest that lists the report."""

    name: Name
    precision: Name
    backend: Name
    identity: Name | None = None


class CalibrationFacts(Part):
    """What scales came from. `data`: such as rollouts or random inputs; `rollouts`, `chunks` of each: how many."""

    method: Name
    data: Name
    rollouts: Count
    chunks: Count
    smoothquant_alpha: float | None
    quantize_attention: bool


class Header(Part):
    """What was compared, on what, with which inputs. `date`: ISO 8601."""

    date: Name
    device: Device
    a: PlanFacts
    b: PlanFacts
    calibration: CalibrationFacts | None
    prompts: tuple[str, ...]
    seeds: tuple[Count, ...]

    @model_validator(mode="after")
    def _is_a_date(self) -> Header:
        datetime.fromisoformat(self.date)
        return self


class ErrorSpread(Part):
    """Over the chunks: the mean, and the largest with its chunk."""

    mean: Error
    worst: Error
    worst_chunk: Count


class CosineSpread(Part):
    """Over the chunks: the mean, and the smallest with its chunk."""

    mean: Cosine
    worst: Cosine
    worst_chunk: Count


class PassError(Part):
    """What one pass changes, from the same inputs: of the sample, or, if it commits, of states that later passes read.

    `scalar`, `value`: the first of the scalars that the pass reads, such as the noise level; None where it has none.
    """

    index: Count
    scalar: Name | None
    value: float | None
    commits: bool
    relative_error: ErrorSpread
    cosine: CosineSpread

    @property
    def name(self) -> str:
        if self.commits:
            return "commit"
        return f"pass {self.index}" + (f" ({self.scalar} {self.value:.3g})" if self.scalar is not None else "")


class StateErrors(Part):
    """One state by chunk. `kind`: its name with * for numbers, such as "*.key"; `layer`: of that kind, from 0."""

    kind: Name
    layer: Count
    relative_error: Errors
    cosine: Cosines


class Course(Part):
    """B against A, chunk by chunk: clean samples, frames (PSNR in dB over 8 bits), and every state after the chunk."""

    relative_error: Annotated[Errors, Field(min_length=1)]
    cosine: Cosines
    psnr_db: tuple[float | None, ...]
    states: tuple[StateErrors, ...]

    @property
    def chunks(self) -> int:
        return len(self.relative_error)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the states, in their first order."""
        return tuple(dict.fromkeys(state.kind for state in self.states))

    def of_kind(self, kind: str) -> tuple[StateErrors, ...]:
        return tuple(state for state in self.states if state.kind == kind)

    @model_validator(mode="after")
    def _one_value_a_chunk(self) -> Course:
        series: list[tuple[str, Series]] = [("cosine", self.cosine), ("psnr_db", self.psnr_db)]
        for state in self.states:
            series.append((f"{state.kind} {state.layer} relative_error", state.relative_error))
            series.append((f"{state.kind} {state.layer} cosine", state.cosine))
        for name, values in series:
            if len(values) != self.chunks:
                raise ValueError(f"{name}: got {len(values)} chunks, expected {self.chunks} as in relative_error")
        return self


class LongCourse(Course):
    """One that is long enough to say whether an error grows."""

    @property
    def growth(self) -> Growth | None:
        """Of the samples' error."""
        return growth(self.relative_error)


class Score(Part):
    """How many of `videos` are as their prompt asks in one respect, `name` (colour, ..), looked at `at` (5 s, ..)."""

    at: Name
    name: Name
    a_percent: Percent
    b_percent: Percent
    videos: PositiveInt

    @property
    def loss_points(self) -> float:
        """What B loses; negative where it is better."""
        return self.a_percent - self.b_percent


class LayerSensitivity(Part):
    """`error`: when this layer alone is quantised. `rank`: 1 costs most. `kept`: the precision that it has in B."""

    layer: Name
    engine: Name
    error: Error
    rank: PositiveInt
    kept: Name
    reason: str


class FallbackRound(Part):
    """Layers that went back to high precision together, and the error of the plan before and after."""

    layers: tuple[Name, ...]
    error_before: Error
    error_after: Error


class Sensitivity(Part):
    """`measure`: what every error here is, in words. `budget`: what the plan's may be; None: no fallback was asked."""

    measure: Name
    layers: tuple[LayerSensitivity, ...]
    budget: Error | None
    fallback: tuple[FallbackRound, ...]

    @property
    def ranked(self) -> tuple[LayerSensitivity, ...]:
        return tuple(sorted(self.layers, key=lambda layer: layer.rank))


class SkippedLayer(Part):
    """A layer that was never a candidate."""

    layer: Name
    engine: Name
    reason: Name


class SizePair(Part):
    """0 where a plan has no such file."""

    a_bytes: Count
    b_bytes: Count

    @property
    def ratio(self) -> float | None:
        """B's of A's; None where A has nothing."""
        return self.b_bytes / self.a_bytes if self.a_bytes else None


class Sizes(Part):
    """`files` by name; `quantised_weights`: of the layers that B has in low precision, scales included."""

    files: Annotated[dict[Name, SizePair], Field(min_length=1)]
    quantised_weights: SizePair | None

    @property
    def total(self) -> SizePair:
        pairs = self.files.values()
        return SizePair(a_bytes=sum(pair.a_bytes for pair in pairs), b_bytes=sum(pair.b_bytes for pair in pairs))


class Timing(Part):
    """Of one chunk."""

    min_ms: PositiveFloat
    median_ms: PositiveFloat


class EngineSeconds(Part):
    """What one engine took over all timed chunks."""

    a_s: Annotated[float, Field(ge=0)]
    b_s: Annotated[float, Field(ge=0)]


class Speed(Part):
    """A and B in one run, in turns, chunk by chunk."""

    chunks: PositiveInt
    a: Timing
    b: Timing
    engines: dict[Name, EngineSeconds]

    @property
    def speedup(self) -> float:
        """A's median time of B's: above 1, B is faster."""
        return self.a.median_ms / self.b.median_ms


class CalibrationRow(Part):
    """One way to calibrate. `worst_pass_cosine`: mean cosine of a report's worst pass; `scores`: percent by name."""

    data: Name
    method: Name
    worst_pass_cosine: Cosine
    guided_error: Error
    scores: dict[Name, Percent]
