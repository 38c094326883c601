"""What each layer costs when it alone is quantised, and which must go back to high precision for a budget.

Measured on rollouts: from several places of the fp32 plan's own rollouts, `CHUNKS` chunks are made by each variant from
the fp32 state, and their clean samples compared. A single pass would miss what the others and the window amplify.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from videossm.calib.calibration import Calibration
from videossm.calib.compare import difference
from videossm.calib.contender import Contender, runnable
from videossm.calib.plans import candidates, chunks_within, quantized_graph, save_graph
from videossm.calib.progress import Progress, Say, announce
from videossm.calib.record import RecordingError, started, with_seeds
from videossm.runtime import Plan, Rollout, Snapshot

STARTS = (0, 4, 12)  # chunks from which variants take over: the first, a full window, one that has evicted
CHUNKS = 2


@dataclass(frozen=True)
class Fallback:
    """Layers that went back to high precision, the costliest first, and the plan's error before and after."""

    layers: tuple[str, ...]
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Ranking:
    """`errors`: of each layer when it alone is quantised, by name, the costliest first; `engines`: those it is in.

    `fallback`: what went back to hold `budget`, an error of all of them together; None where there was no budget.
    """

    errors: dict[str, float]
    engines: dict[str, tuple[str, ...]]
    budget: float | None = None
    fallback: Fallback | None = None


def probe_chunks(plan: Plan, rollouts: int) -> int:
    """How many chunks `Probe.error` makes, at most."""
    return rollouts * len(_starts(plan)) * chunks_within(plan, CHUNKS)


def _starts(plan: Plan) -> list[int]:
    """The chunks of a stream or clip that variants take over from."""
    last = chunks_within(plan, max(STARTS) + CHUNKS) - chunks_within(plan, CHUNKS)
    return [start for start in STARTS if start <= last]


class Probe:
    """The fp32 rollouts that variants of `plan` are compared with. `engines`: those of every layer, by its name."""

    def __init__(self, plan: Plan, prompts: Sequence[str] | None, seeds: Sequence[int]) -> None:
        self._plan = plan
        self.engines = candidates(plan).engines
        self._prompt = prompts[0] if prompts else None
        self._expected: list[tuple[Snapshot, list[NDArray[np.float32]]]] = []
        rollout = Contender(plan, plan.manifest.precision).rollout(self._prompt, seeds[0])
        fresh = rollout.snapshot()
        for prompt, seed in with_seeds(prompts, seeds):
            rollout.restore(started(fresh, prompt, seed))
            for start in _starts(plan):
                for _ in islice(rollout, start - rollout.next_index):
                    pass
                here = rollout.snapshot()
                self._expected.append((here, _samples(rollout, here)))
                rollout.restore(here)

    def error(self, calibration: Calibration, chosen: Collection[str]) -> float:
        """Mean relative error of the samples with the layers named in `chosen` quantised."""
        with self._variant(calibration, chosen) as variant:
            rollout = variant.rollout(self._prompt, 0)
            errors = []
            for start, expected in self._expected:
                errors += [difference(a, b)[0] for a, b in zip(expected, _samples(rollout, start), strict=True)]
        if not np.isfinite(errors).all():
            raise RecordingError(
                f"rollout with {', '.join(sorted(chosen)[:3])} quantised: got samples that are not finite, "
                "expected numbers; calibrate again"
            )
        return float(np.mean(errors))

    @contextmanager
    def _variant(self, calibration: Calibration, chosen: Collection[str]) -> Iterator[Contender]:
        with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
            files = {}
            for engine in {engine for name in chosen for engine in self.engines[name]}:
                files[engine] = Path(folder, f"{engine}.onnx")
                graph = quantized_graph(self._plan, engine, calibration, chosen)
                save_graph(runnable(graph, calibration.precision), files[engine])
            yield Contender(self._plan, calibration.precision, files)


def sensitivity(
    probe: Probe, calibration: Calibration, layers: Sequence[str], on_layer: Callable[[], object]
) -> dict[str, float]:
    """The error of each layer alone, by name, the costliest first."""
    errors = {}
    for name in layers:
        errors[name] = probe.error(calibration, {name})
        on_layer()
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def hold_budget(
    probe: Probe, calibration: Calibration, layers: Sequence[str], budget: float, progress: Progress, say: Say
) -> Ranking:
    """Returns to high precision as few of `layers` as leave an error of at most `budget`.

    Only where all of them together cost more are they measured one by one and ranked.
    """
    started_s = perf_counter()
    before = probe.error(calibration, layers)
    if before <= budget:
        return Ranking({}, probe.engines, budget, Fallback((), before, before))
    announce(say, "ranking of layers for --max-error", len(layers) * (perf_counter() - started_s))
    with progress(len(layers), "layer") as bar:
        bar.set_description("sensitivity")
        errors = sensitivity(probe, calibration, layers, bar.update)
    return Ranking(errors, probe.engines, budget, fall_back(probe, calibration, errors, before, budget))


def fall_back(
    probe: Probe, calibration: Calibration, errors: dict[str, float], before: float, budget: float
) -> Fallback:
    """The fewest of the costliest layers, by `errors`, to leave an error of at most `budget`, which `before` is above.

    Found by bisection over their number: errors of single layers predict their rank, but not what they sum up to.
    """
    ranked = list(errors)
    too_few, enough = 0, len(ranked)  # all of them back leave no error
    after = 0.0
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        error = probe.error(calibration, ranked[middle:])
        if error <= budget:
            enough, after = middle, error
        else:
            too_few = middle
    return Fallback(tuple(ranked[:enough]), before, after)


def _samples(rollout: Rollout, start: Snapshot) -> list[NDArray[np.float32]]:
    rollout.restore(start)
    return [rollout.sample for _ in islice(rollout, CHUNKS)]
