"""A small report with every part, of made-up figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from videossm.calib.report import (
    CalibrationFacts,
    CalibrationRow,
    CosineSpread,
    Course,
    Device,
    EngineSeconds,
    ErrorSpread,
    FallbackRound,
    FullReport,
    Header,
    LayerSensitivity,
    LongCourse,
    PassError,
    PlanFacts,
    Score,
    Sensitivity,
    ShortReport,
    SizePair,
    Sizes,
    SkippedLayer,
    Speed,
    StateErrors,
    Timing,
)

LAYERS = 3
LEVELS = (1.0, 0.8, 0.4, 0.0)  # the last pass commits
UNREAD = 4  # chunks before the last kind of state holds anything


def numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def of_pass(index: int, error: float) -> PassError:
    return PassError(
        index=index,
        scalar="sigma",
        value=LEVELS[index],
        commits=index == len(LEVELS) - 1,
        relative_error=ErrorSpread(mean=error, worst=2 * error, worst_chunk=7),
        cosine=CosineSpread(mean=1 - error**2, worst=1 - 4 * error**2, worst_chunk=8),
    )


def state(kind: str, layer: int, errors: np.ndarray[Any, Any], empty: int = 0) -> StateErrors:
    shown, cosines = numbers(errors[empty:]), numbers(np.cos(np.clip(errors[empty:], 0, 3)))
    return StateErrors(kind=kind, layer=layer, relative_error=(None,) * empty + shown, cosine=(None,) * empty + cosines)


def course(chunks: int, level: float, rise: float, seed: int = 0) -> LongCourse:
    """Errors around `level` that rise by the share `rise` from the first chunk to the last."""
    rng = np.random.default_rng(seed)

    def errors(scale: float) -> np.ndarray[Any, Any]:
        return scale * level * (1 + rise * np.linspace(0, 1, chunks)) * rng.uniform(0.8, 1.2, chunks)

    samples = errors(1)
    states = [
        state(kind, layer, errors(scale * (1 + layer)), empty)
        for kind, scale, empty in (("*.key", 0.4, 0), ("*.value", 0.8, 0), ("*.carried", 0.1, UNREAD))
        for layer in range(LAYERS)
    ]
    psnr_db = (None, *numbers(-20 * np.log10(samples[1:])))  # the first frames are equal
    cosines = numbers(np.cos(samples))
    return LongCourse(relative_error=numbers(samples), cosine=cosines, psnr_db=psnr_db, states=tuple(states))


def layer(rank: int, kept: str = "int8") -> LayerSensitivity:
    reason = "within the budget" if kept == "int8" else "over the budget"
    name = f"blocks.{rank}.attn.q"
    return LayerSensitivity(layer=name, engine="denoise", error=0.1 / rank**2, rank=rank, kept=kept, reason=reason)


def parts() -> dict[str, Any]:
    calibration = CalibrationFacts(
        method="percentile",
        data="the fp32 plan's own rollouts",
        rollouts=8,
        chunks=200,
        smoothquant_alpha=0.5,
        quantize_attention=False,
    )
    return {
        "header": Header(
            date="2026-11-21T04:00:00+00:00",
            device=Device(name="Xeon (made up)", threads=2, features=("avx2", "avx512_vnni")),
            a=PlanFacts(name="tiny", precision="fp32", backend="onnxruntime", identity="ab" * 32),
            b=PlanFacts(name="tiny", precision="int8", backend="onnxruntime"),
            calibration=calibration,
            prompts=("a red circle bounces", "a blue square stands still"),
            seeds=(7, 8),
        ),
        "passes": tuple(of_pass(index, error) for index, error in enumerate((0.09, 0.05, 0.02, 0.01))),
        "guided": course(24, 0.02, 0.1),
        "free_running": course(24, 0.1, 8, seed=1),
        "evaluation": (
            Score(at="5 s", name="colour", a_percent=98.0, b_percent=97.5, videos=54),
            Score(at="60 s", name="colour", a_percent=75.0, b_percent=76.0, videos=12),
        ),
        "calibration_comparison": (
            CalibrationRow(
                data="rollouts", method="max", worst_pass_cosine=0.995, guided_error=0.02, scores={"colour": 97.5}
            ),
            CalibrationRow(data="random inputs", method="max", worst_pass_cosine=0.71, guided_error=0.4, scores={}),
        ),
        "sensitivity": Sensitivity(
            measure="relative error of the samples",
            layers=(layer(2), layer(1, "fp32"), layer(3)),
            budget=0.03,
            fallback=(FallbackRound(layers=("blocks.1.attn.q",), error_before=0.05, error_after=0.02),),
        ),
        "skipped": (SkippedLayer(layer="head", engine="denoise", reason="the last layer"),),
        "sizes": Sizes(
            files={
                "denoise.onnx": SizePair(a_bytes=4_000_000, b_bytes=1_100_000),
                "calibration.json": SizePair(a_bytes=0, b_bytes=900),
            },
            quantised_weights=SizePair(a_bytes=3_600_000, b_bytes=910_000),
        ),
        "speed": Speed(
            chunks=40,
            a=Timing(min_ms=80.0, median_ms=90.0),
            b=Timing(min_ms=60.0, median_ms=72.0),
            engines={"denoise": EngineSeconds(a_s=3.4, b_s=2.5), "evict": EngineSeconds(a_s=0.0, b_s=0.0)},
        ),
    }


@pytest.fixture
def build_report() -> Callable[..., FullReport]:
    """`build_report(**changes)`: a full report with every part; a part given as None is left out."""

    def build(**changes: Any) -> FullReport:
        given = {**parts(), **changes}
        return FullReport(**{name: part for name, part in given.items() if part is not None})

    return build


@pytest.fixture
def report(build_report: Callable[..., FullReport]) -> FullReport:
    return build_report()


@pytest.fixture
def short() -> ShortReport:
    """A short report with every part that one may have."""
    given = {name: part for name, part in parts().items() if name in ShortReport.model_fields}
    return ShortReport(**{**given, "guided": Course(**given["guided"].model_dump())})
