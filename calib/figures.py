"""Measured errors, sizes and settings as the parts of a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TypeVar

import numpy as np

from videossm.calib.calibration import Calibration
from videossm.calib.compare import Measured, SampleError
from videossm.calib.linears import Linear
from videossm.calib.report.parts import (
    CalibrationFacts,
    CosineSpread,
    Course,
    Device,
    ErrorSpread,
    FallbackRound,
    Header,
    LayerSensitivity,
    PassError,
    PlanFacts,
    Sensitivity,
    SizePair,
    Sizes,
    StateErrors,
)
from videossm.calib.sensitivity import Ranking
from videossm.runtime import Plan
from videossm.runtime.manifest import Pass
from videossm.runtime.processor import probe_processor

SCALE_BYTES = 5  # an output channel's scale in fp32 and its zero point

AnyCourse = TypeVar("AnyCourse", bound=Course)


def pass_errors(passes: Sequence[Pass], rollouts: Sequence[Sequence[Measured]]) -> tuple[PassError, ...]:
    """Of every pass of a chunk, over all chunks of the rollouts."""
    return tuple(
        _pass(index, each, [[chunk.passes[index] for chunk in rollout] for rollout in rollouts])
        for index, each in enumerate(passes)
    )


def _pass(index: int, of: Pass, rollouts: list[list[tuple[float, float]]]) -> PassError:
    """`rollouts`: (relative error, cosine) of every chunk of every rollout."""
    errors, cosines = np.moveaxis(np.array(rollouts), -1, 0)  # [rollouts, chunks] each
    scalar, value = next(iter(of.scalars.items()), (None, None))
    return PassError(
        index=index,
        scalar=scalar,
        value=value,
        commits=of.commits,
        relative_error=ErrorSpread(
            mean=float(errors.mean()), worst=float(errors.max()), worst_chunk=int(errors.max(0).argmax())
        ),
        cosine=CosineSpread(
            mean=float(cosines.mean()), worst=float(cosines.min()), worst_chunk=int(cosines.min(0).argmin())
        ),
    )


def course(
    kind: type[AnyCourse], rollouts: Sequence[Sequence[SampleError]], states: tuple[StateErrors, ...] = ()
) -> AnyCourse:
    """Means over the rollouts, chunk by chunk, as a course of the given kind."""
    pairs = np.array([[chunk.sample for chunk in rollout] for rollout in rollouts])
    errors, cosines = np.moveaxis(pairs.mean(0), -1, 0)
    return kind(
        relative_error=tuple(map(float, errors)),
        cosine=tuple(map(float, cosines)),
        psnr_db=tuple(_mean([chunk.psnr_db for chunk in chunks]) for chunks in zip(*rollouts, strict=True)),
        states=states,
    )


def state_errors(rollouts: Sequence[Sequence[Measured]]) -> tuple[StateErrors, ...]:
    """Of every state, means over the rollouts, chunk by chunk."""
    found = []
    for kind, layer in sorted(rollouts[0][0].states):
        chunks = list(zip(*([e.states[kind, layer] for e in rollout] for rollout in rollouts), strict=True))
        found.append(
            StateErrors(
                kind=kind,
                layer=layer,
                relative_error=tuple(_mean([pair and pair[0] for pair in column]) for column in chunks),
                cosine=tuple(_mean([pair and pair[1] for pair in column]) for column in chunks),
            )
        )
    return tuple(found)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def sensitivity_figures(ranking: Ranking, precision: str) -> Sensitivity:
    """`precision`: of the layers that did not go back to fp32."""
    back = ranking.fallback.layers if ranking.fallback else ()
    layers = tuple(
        LayerSensitivity(
            layer=name,
            engine=", ".join(ranking.engines[name]),
            error=error,
            rank=rank,
            kept="fp32" if name in back else precision,
            reason=f"among the costliest, for an error of at most {ranking.budget:g}" if name in back else "",
        )
        for rank, (name, error) in enumerate(ranking.errors.items(), 1)
    )
    rounds = [
        FallbackRound(layers=fallback.layers, error_before=fallback.error_before, error_after=fallback.error_after)
        for fallback in filter(None, [ranking.fallback])
    ]
    return Sensitivity(
        measure="mean relative error of the samples, short rollouts from fp32 states",
        layers=layers,
        budget=ranking.budget,
        fallback=tuple(rounds),
    )


def sizes(a: Plan, b: Plan, quantised: Sequence[Linear]) -> Sizes:
    """Of the files of both plans, but for reports. `quantised`: the layers that B has in 8 bits."""
    files = {
        name: SizePair(a_bytes=_bytes(a, name), b_bytes=_bytes(b, name))
        for name in sorted(a.manifest.files.keys() | b.manifest.files.keys())
        if not name.startswith("report")
    }
    fp32 = sum(4 * linear.size for linear in quantised)
    small = sum(linear.size + SCALE_BYTES * linear.channels for linear in quantised)
    return Sizes(files=files, quantised_weights=SizePair(a_bytes=fp32, b_bytes=small) if quantised else None)


def _bytes(plan: Plan, name: str) -> int:
    file = plan.manifest.files.get(name)
    return file.size_bytes if file else 0


def header(
    a: Plan, b: Plan, prompts: tuple[str, ...] | None, seeds: tuple[int, ...], calibration: Calibration | None
) -> Header:
    """What was compared, on this machine, now."""
    processor = probe_processor()
    return Header(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=Device(name=processor.name, threads=os.cpu_count() or 1, features=processor.features),
        a=PlanFacts(name=a.name, precision=a.manifest.precision, backend=a.manifest.backend, identity=a.identity),
        b=PlanFacts(name=b.name, precision=b.manifest.precision, backend=b.manifest.backend),
        calibration=_calibration_facts(calibration) if calibration else None,
        prompts=prompts or (),
        seeds=seeds,
    )


def _calibration_facts(calibration: Calibration) -> CalibrationFacts:
    settings = calibration.settings
    return CalibrationFacts(
        method=settings.method,
        data=settings.data,
        rollouts=len(settings.seeds),
        chunks=settings.chunks,
        smoothquant_alpha=settings.smoothquant,
        quantize_attention=settings.quantize_attention,
    )
