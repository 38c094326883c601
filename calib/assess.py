"""The report on a plan of lower precision: every measurement, gathered."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Protocol

import numpy as np
import onnx

from videossm.calib.calibration import Calibration
from videossm.calib.compare import Contender, Errors, measure
from videossm.calib.emulate import emulate
from videossm.calib.evaluate import can_evaluate, evaluate, evaluation_videos
from videossm.calib.linears import Linear, Skipped
from videossm.calib.plans import HALF, save_graph
from videossm.calib.record import passes
from videossm.calib.report.schema import (
    CalibrationFacts,
    CosineSpread,
    Course,
    Device,
    EngineSeconds,
    ErrorSpread,
    Header,
    PlanFacts,
    Report,
    Score,
    Sensitivity,
    SizePair,
    Sizes,
    SkippedLayer,
    Speed,
    StateErrors,
    StepError,
    Timing,
)
from videossm.runtime import Plan
from videossm.runtime.errors import UserError
from videossm.runtime.manifest import Manifest
from videossm.runtime.processor import probe_processor

CHUNKS = 200  # of each rollout
WARM_CHUNKS, TIMED_CHUNKS = 4, 24  # the window is full when the clock starts
SCALE_BYTES = 5  # a column's scale in fp32 and its zero point


class CompareError(UserError):
    """Two plans that are not of one model."""


class Bar(Protocol):
    """Progress, as tqdm has it."""

    def update(self) -> object: ...


# (total, unit) -> a bar to use in a with statement
Progress = Callable[[int, str], AbstractContextManager[Bar]]


@dataclass(frozen=True)
class Inputs:
    """What is rolled out, one rollout for each pair of prompt and seed."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    chunks: int = CHUNKS


@dataclass(frozen=True)
class Made:
    """How plan B was made; all empty where nobody knows."""

    calibration: Calibration | None = None
    quantised: Sequence[Linear] = ()
    skipped: Sequence[Skipped] = ()
    sensitivity: Sensitivity | None = None


def assess(a: Plan, b: Plan, inputs: Inputs, made: Made, progress: Progress, evaluation: bool = True) -> Report:
    """Measures plan B against plan A and gathers what there is to say.

    `evaluation`: also judge what the videos show, where the plans make what the evaluation knows.
    Raises CompareError when the plans are not of one model, RecordingError for a value that is not finite.
    """
    check_comparable(a, b)
    with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
        pair = contender(a, Path(folder, "a")), contender(b, Path(folder, "b"))
        rollouts = []
        for prompt, seed in zip(inputs.prompts, inputs.seeds, strict=True):
            with progress(inputs.chunks, "chunk") as bar:
                rollouts.append([_counted(errors, bar) for errors in measure(*pair, prompt, seed, inputs.chunks)])
        scores = tuple(_scores(pair, progress)) if evaluation and can_evaluate(a) else ()
        timed = None if HALF.keys() & {a.manifest.precision, b.manifest.precision} else _speed(pair, inputs)
    sigmas = passes(a.manifest)
    return Report(
        header=_header(a, b, inputs, made.calibration),
        steps=tuple(
            _step(i, sigma, [[e.steps[i] for e in rollout] for rollout in rollouts]) for i, sigma in enumerate(sigmas)
        ),
        guided=_course(
            [[e.guided for e in r] for r in rollouts],
            [[e.guided_psnr_db for e in r] for r in rollouts],
            _states(rollouts),
        ),
        free_running=_course(
            [[e.free for e in r] for r in rollouts], [[e.free_psnr_db for e in r] for r in rollouts], ()
        ),
        evaluation=scores,
        sensitivity=made.sensitivity,
        skipped=tuple(SkippedLayer(layer=s.name, engine=s.engine, reason=s.reason) for s in made.skipped),
        sizes=_sizes(a, b, made.quantised),
        speed=timed,
    )


def check_comparable(a: Plan, b: Plan) -> None:
    """Raises CompareError, naming the field, unless both plans are of one model with one stream and one sampler."""
    for field in ("name", "model", "stream", "sampler"):
        first, second = getattr(a.manifest, field), getattr(b.manifest, field)
        if first != second:
            raise CompareError(
                f"plans: got another {field} in {b.path} than in {a.path}, expected two plans of one model; "
                "export both from the same checkpoint with the same sizes"
            )


def contender(plan: Plan, folder: Path) -> Contender:
    """`plan` as this machine can run it: graphs in half precision as fp32 graphs that round, written to `folder`."""
    if plan.manifest.precision not in HALF:
        return Contender(plan, plan.manifest.precision)
    folder.mkdir()
    files = {}
    for name, spec in plan.manifest.engines.items():
        files[name] = folder / spec.file
        save_graph(emulate(onnx.load(plan.path / spec.file)), files[name])
    values = plan.manifest.model_dump(mode="json")
    for engine in filter(None, values["engines"].values()):
        for tensor in (*engine["inputs"], *engine["outputs"]):
            if tensor["dtype"] in HALF.values():
                tensor["dtype"] = "float32"
    return Contender(replace(plan, manifest=Manifest.model_validate_json(json.dumps(values))), "fp32", files)


def _counted(errors: Errors, bar: Bar) -> Errors:
    bar.update()
    return errors


def _step(index: int, sigma: float, rollouts: list[list[tuple[float, float]]]) -> StepError:
    """`rollouts`: (relative error, cosine) of every chunk of every rollout."""
    errors, cosines = np.moveaxis(np.array(rollouts), -1, 0)  # [rollouts, chunks] each
    return StepError(
        index=index,
        sigma=sigma,
        relative_error=ErrorSpread(
            mean=float(errors.mean()), worst=float(errors.max()), worst_chunk=int(errors.max(0).argmax())
        ),
        cosine=CosineSpread(
            mean=float(cosines.mean()), worst=float(cosines.min()), worst_chunk=int(cosines.min(0).argmin())
        ),
    )


def _course(
    rollouts: list[list[tuple[float, float]]], psnr_db: list[list[float | None]], states: tuple[StateErrors, ...]
) -> Course:
    """Means over the rollouts, chunk by chunk."""
    errors, cosines = np.moveaxis(np.array(rollouts).mean(0), -1, 0)
    return Course(
        relative_error=tuple(map(float, errors)),
        cosine=tuple(map(float, cosines)),
        psnr_db=tuple(_mean(column) for column in zip(*psnr_db, strict=True)),
        states=states,
    )


def _states(rollouts: list[list[Errors]]) -> tuple[StateErrors, ...]:
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


def _scores(pair: Sequence[Contender], progress: Progress) -> Iterator[Score]:
    figures = []
    for side in pair:
        with progress(evaluation_videos(side.plan), "video") as bar:
            figures.append(evaluate(side.plan, bar.update, partial(side.backend, threads=1)))
    for (at, name), share in figures[0].items():
        other = figures[1][at, name]
        yield Score(at=at, name=name, a_percent=share.percent, b_percent=other.percent, videos=share.videos)


def _speed(pair: Sequence[Contender], inputs: Inputs) -> Speed:
    """Chunks of both in turns, so that whatever slows this machine slows both."""
    rollouts = [side.rollout(inputs.prompts[0], inputs.seeds[0]) for side in pair]
    for rollout in rollouts:
        for _ in islice(rollout, WARM_CHUNKS):
            pass
    before = [dict(rollout.timings) for rollout in rollouts]
    times: list[list[float]] = [[], []]
    for _ in range(TIMED_CHUNKS):
        for rollout, taken in zip(rollouts, times, strict=True):
            start = perf_counter()
            next(rollout)
            taken.append(1000 * (perf_counter() - start))
    a, b = (Timing(min_ms=min(taken), median_ms=median(taken)) for taken in times)
    spent = [{n: s - old[n] for n, s in r.timings.items()} for r, old in zip(rollouts, before, strict=True)]
    engines = {name: EngineSeconds(a_s=seconds, b_s=spent[1][name]) for name, seconds in spent[0].items()}
    return Speed(chunks=TIMED_CHUNKS, a=a, b=b, engines=engines)


def _sizes(a: Plan, b: Plan, quantised: Sequence[Linear]) -> Sizes:
    files = {
        name: SizePair(a_bytes=_bytes(a, name), b_bytes=_bytes(b, name))
        for name in sorted(a.manifest.files.keys() | b.manifest.files.keys())
        if not name.startswith("report")
    }
    fp32 = sum(4 * rows * columns for rows, columns in (linear.shape for linear in quantised))
    small = sum(rows * columns + SCALE_BYTES * columns for rows, columns in (linear.shape for linear in quantised))
    return Sizes(files=files, quantised_weights=SizePair(a_bytes=fp32, b_bytes=small) if quantised else None)


def _bytes(plan: Plan, name: str) -> int:
    file = plan.manifest.files.get(name)
    return file.size_bytes if file else 0


def _header(a: Plan, b: Plan, inputs: Inputs, calibration: Calibration | None) -> Header:
    processor = probe_processor()
    return Header(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=Device(name=processor.name, threads=os.cpu_count() or 1, features=processor.features),
        a=PlanFacts(name=a.name, precision=a.manifest.precision, backend=a.manifest.backend, identity=a.identity),
        b=PlanFacts(name=b.name, precision=b.manifest.precision, backend=b.manifest.backend),
        calibration=_calibration_facts(calibration) if calibration else None,
        prompts=inputs.prompts,
        seeds=inputs.seeds,
    )


def _calibration_facts(calibration: Calibration) -> CalibrationFacts:
    settings = calibration.settings
    return CalibrationFacts(
        method=settings.method,
        data=settings.data,
        rollouts=len(settings.prompts),
        chunks=settings.chunks,
        smoothquant_alpha=settings.smoothquant,
        quantize_attention=settings.quantize_attention,
    )
