"""The report on a plan of lower precision: every measurement, made and gathered.

A short report answers in a minute what a chunk costs and at which pass. A full one also says whether that grows with
the video, what the videos show, and what each layer costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from videossm.calib.calibration import Calibration
from videossm.calib.compare import Comparison, Measured, comparable
from videossm.calib.contender import Contender, contender
from videossm.calib.evaluate import evaluate, evaluation_chunks, find_evaluation
from videossm.calib.figures import course, header, pass_errors, sensitivity_figures, sizes, state_errors
from videossm.calib.linears import Linear, Skipped
from videossm.calib.options import HALF
from videossm.calib.plans import chunks_within
from videossm.calib.progress import Bar, Progress, Say, announce
from videossm.calib.prompts import default_prompts
from videossm.calib.record import started, with_seeds
from videossm.calib.report.parts import Course, EngineSeconds, LongCourse, Score, SkippedLayer, Speed, Timing
from videossm.calib.report.schema import FullReport, ShortReport
from videossm.calib.sensitivity import Probe, Ranking, probe_chunks, sensitivity
from videossm.runtime import Chunk, Plan, Rollout
from videossm.runtime.errors import UserError

if TYPE_CHECKING:  # imports torch
    from videossm.models.family import Evaluation

ROLLOUTS = 2
SEED = 2_000_000  # of the first rollout: apart from those of calibrations and of the evaluation
FULL_CHUNKS = 200  # of each rollout
SHORT_CHUNKS = 20  # of each rollout, after as many as fill the window: they read what was evicted
WARM_CHUNKS, TIMED_CHUNKS = 4, 24  # the window is full when the clock starts
PACE_CHUNKS = 2  # timed, after a first one, to tell how long a report takes


class CompareError(UserError):
    """Two plans that are not of one model."""


@dataclass(frozen=True)
class Inputs:
    """What is rolled out, one rollout for each seed, with its prompt where there is text."""

    prompts: tuple[str, ...] | None
    seeds: tuple[int, ...]
    chunks: int

    @property
    def prompt(self) -> str | None:
        """The first one."""
        return self.prompts[0] if self.prompts else None


@dataclass(frozen=True)
class Origin:
    """How plan B was made; all empty where nobody knows.

    `layers`: names of all that could be in 8 bits; `quantised`: those products with a weight that are.
    """

    calibration: Calibration | None = None
    layers: Sequence[str] = ()
    quantised: Sequence[Linear] = ()
    skipped: Sequence[Skipped] = ()
    ranking: Ranking | None = None


def short_inputs(plan: Plan) -> Inputs:
    """What a short report on `plan` rolls out."""
    window = plan.manifest.window
    return report_inputs(plan, (window.chunks if window is not None else 0) + SHORT_CHUNKS)


def report_inputs(plan: Plan, chunks: int = FULL_CHUNKS) -> Inputs:
    """Rollouts with prompts and seeds that no calibration of this project uses by default."""
    prompts, seeds = default_prompts(plan, ROLLOUTS, SEED), tuple(range(SEED, SEED + ROLLOUTS))
    return Inputs(prompts, seeds, chunks_within(plan, chunks))


def short_report(a: Plan, b: Plan, inputs: Inputs, origin: Origin, progress: Progress, say: Say) -> ShortReport:
    """Measures what a chunk of plan B costs against plan A. Announces how long that takes, if it is long.

    Raises CompareError when the plans are not of one model, RecordingError for a value that is not finite.
    """
    check_comparable(a, b)
    with _contenders(a, b) as pair:
        comparison = Comparison(*pair, inputs.prompt, free_running=False)
        chunks = _compared_chunks(comparison, inputs) + _timed_chunks(a, b)
        with _started(comparison, inputs, chunks, progress, say) as bar:
            rollouts = _rollouts(comparison, inputs, bar)
            speed = _speed(a, b, inputs, bar)
    guided = course(Course, [[e.guided for e in rollout] for rollout in rollouts], state_errors(rollouts))
    return ShortReport(**_common_parts(a, b, inputs, origin, rollouts, speed), guided=guided)


def full_report(
    a: Plan, b: Plan, inputs: Inputs, origin: Origin, progress: Progress, say: Say, evaluation: bool = True
) -> FullReport:
    """As `short_report`, and all else that there is to say.

    `evaluation`: also judge what the videos show, where the plans' family can.
    """
    check_comparable(a, b)
    judge = find_evaluation(a) if evaluation else None
    with _contenders(a, b) as pair:
        comparison = Comparison(*pair, inputs.prompt, free_running=True)
        chunks = _compared_chunks(comparison, inputs) + _timed_chunks(a, b)
        chunks += 2 * evaluation_chunks(a, judge) if judge is not None else 0
        chunks += _ranked_chunks(a, inputs, origin)
        with _started(comparison, inputs, chunks, progress, say) as bar:
            rollouts = _rollouts(comparison, inputs, bar)
            scores = tuple(_scores(pair, judge, bar)) if judge is not None else ()
            origin = replace(origin, ranking=_ranking(a, inputs, origin, bar))
            speed = _speed(a, b, inputs, bar)
    free = [[e.free for e in rollout if e.free] for rollout in rollouts]
    return FullReport(
        **_common_parts(a, b, inputs, origin, rollouts, speed),
        guided=course(LongCourse, [[e.guided for e in rollout] for rollout in rollouts], state_errors(rollouts)),
        free_running=course(LongCourse, free),
        evaluation=scores,
    )


def check_comparable(a: Plan, b: Plan) -> None:
    """Raises CompareError, naming the field, unless both plans are of one model with one stream and the same passes."""
    second = comparable(b)
    for field, value in comparable(a).items():
        if value != second[field]:
            raise CompareError(
                f"plans: got another {field} in {b.path} than in {a.path}, expected two plans of one model; "
                "export both from the same checkpoint with the same sizes"
            )


@contextmanager
def _contenders(a: Plan, b: Plan) -> Iterator[tuple[Contender, Contender]]:
    with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
        yield contender(a, Path(folder, "a")), contender(b, Path(folder, "b"))


@contextmanager
def _started(comparison: Comparison, inputs: Inputs, chunks: int, progress: Progress, say: Say) -> Iterator[Bar]:
    """One bar for all `chunks` of a report, after a few of them have told how long it takes."""
    paced = comparison.errors(inputs.prompt, inputs.seeds[0], min(1 + PACE_CHUNKS, inputs.chunks))
    start = perf_counter()
    next(paced)
    first, start = perf_counter() - start, perf_counter()
    others = len(list(paced))
    chunk_s = (perf_counter() - start) / others if others else first
    announce(say, "report", chunks * chunk_s / comparison.rollouts)
    with progress(chunks, "chunk") as bar:
        yield bar


def _compared_chunks(comparison: Comparison, inputs: Inputs) -> int:
    return comparison.rollouts * inputs.chunks * len(inputs.seeds)


def _rollouts(comparison: Comparison, inputs: Inputs, bar: Bar) -> list[list[Measured]]:
    rollouts: list[list[Measured]] = []
    for number, (prompt, seed) in enumerate(with_seeds(inputs.prompts, inputs.seeds), 1):
        bar.set_description(f"rollout {number} of {len(inputs.seeds)}")
        rollouts.append([])
        for errors in comparison.errors(prompt, seed, inputs.chunks):
            rollouts[-1].append(errors)
            bar.update(comparison.rollouts)
    return rollouts


def _scores(pair: Sequence[Contender], judge: Evaluation, bar: Bar) -> Iterator[Score]:
    figures = []
    for side, name in zip(pair, "AB", strict=True):
        bar.set_description(f"evaluation of {name}")
        figures.append(evaluate(side.plan, judge, bar.update, partial(side.backend, threads=1)))
    for a, b in zip(*figures, strict=True):
        yield Score(at=a.at, name=a.what, a_percent=a.percent, b_percent=b.percent, videos=a.videos)


def _ranked_chunks(a: Plan, inputs: Inputs, origin: Origin) -> int:
    """Origin to rank the layers: none where they are ranked already, or where nobody knows how B was calibrated."""
    if origin.calibration is None or (origin.ranking and origin.ranking.errors):
        return 0
    return len(origin.layers) * probe_chunks(a, len(inputs.seeds))


def _ranking(a: Plan, inputs: Inputs, origin: Origin, bar: Bar) -> Ranking | None:
    if origin.calibration is None or (origin.ranking and origin.ranking.errors):
        return origin.ranking
    bar.set_description("sensitivity")
    probe = Probe(a, inputs.prompts, inputs.seeds)
    chunks = probe_chunks(a, len(inputs.seeds))
    errors = sensitivity(probe, origin.calibration, origin.layers, lambda: bar.update(chunks))
    return replace(origin.ranking, errors=errors) if origin.ranking else Ranking(errors, probe.engines)


def _timed_chunks(a: Plan, b: Plan) -> int:
    return 2 * (WARM_CHUNKS + TIMED_CHUNKS) if _have_speed(a, b) else 0


def _have_speed(a: Plan, b: Plan) -> bool:
    """Half precision is emulated, and what that takes says nothing."""
    return not HALF.keys() & {a.manifest.precision, b.manifest.precision}


def _speed(a: Plan, b: Plan, inputs: Inputs, bar: Bar) -> Speed | None:
    """Chunks of both in turns, with their own graphs, so that whatever slows this machine slows both."""
    if not _have_speed(a, b):
        return None
    bar.set_description("speed")
    sides = [Contender(plan, plan.manifest.precision) for plan in (a, b)]
    rollouts = [side.rollout(inputs.prompt, inputs.seeds[0]) for side in sides]
    chunks = [_without_end(rollout, inputs) for rollout in rollouts]
    for each in chunks:
        for _ in islice(each, WARM_CHUNKS):
            bar.update()
    before = [dict(rollout.timings) for rollout in rollouts]
    times: list[list[float]] = [[], []]
    for _ in range(TIMED_CHUNKS):
        for each, taken in zip(chunks, times, strict=True):
            start = perf_counter()
            next(each)
            taken.append(1000 * (perf_counter() - start))
            bar.update()
    first, second = (Timing(min_ms=min(taken), median_ms=median(taken)) for taken in times)
    spent = [{n: s - old[n] for n, s in r.timings.items()} for r, old in zip(rollouts, before, strict=True)]
    engines = {name: EngineSeconds(a_s=seconds, b_s=spent[1][name]) for name, seconds in spent[0].items()}
    return Speed(chunks=TIMED_CHUNKS, a=first, b=second, engines=engines)


def _without_end(rollout: Rollout, inputs: Inputs) -> Iterator[Chunk]:
    """Its chunks; a clip begins again when it has ended."""
    fresh = rollout.snapshot()
    while True:
        yield from rollout
        rollout.restore(started(fresh, inputs.prompt, inputs.seeds[0]))


def _common_parts(
    a: Plan, b: Plan, inputs: Inputs, origin: Origin, rollouts: Sequence[Sequence[Measured]], speed: Speed | None
) -> dict[str, Any]:
    """What reports of both kinds have."""
    calibration = origin.calibration
    return {
        "header": header(a, b, inputs.prompts, inputs.seeds, calibration),
        "passes": pass_errors(a.manifest.passes, rollouts),
        "sensitivity": sensitivity_figures(origin.ranking, b.manifest.precision) if origin.ranking else None,
        "skipped": tuple(SkippedLayer(layer=s.name, engine=s.engine, reason=s.reason) for s in origin.skipped),
        "sizes": sizes(a, b, origin.quantised),
        "speed": speed,
    }
