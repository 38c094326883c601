"""Measures an exported shapes plan: `python benchmarks/evaluate_shapes.py engine.plan --out docs/evaluation.md`.

Adherence: does a 5-second clip show what its prompt says, over all pairs of colour and shape.
Steering: does it when the prompt takes the place of another one on the way.
Endurance: is the object still there, as asked, after a minute. Reads nothing but the plan.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from videossm.models.shapes.evaluation import (
    Adherence,
    Endurance,
    Generate,
    Steer,
    adherence_cases,
    endurance_cases,
    evaluate_adherence,
    evaluate_endurance,
    evaluate_steering,
    steering_cases,
)
from videossm.models.videossm.presets import shapes
from videossm.runtime import Plan, Rollout
from videossm.runtime.errors import PlanError, UserError

ENDURANCE_PROMPTS = 12
PARTS = ["adherence", "steering", "endurance"]


@dataclass(frozen=True)
class Report:
    """What was measured on which plan; a part that was not asked for is None."""

    date: str  # ISO 8601, UTC
    plan: Plan
    adherence: Adherence | None
    steering: Adherence | None
    endurance: Endurance | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        manifest = self.plan.manifest
        return {
            "date": self.date,
            "plan": {
                "name": manifest.name,
                "identity": self.plan.identity,
                "precision": manifest.precision,
                "backend": manifest.backend,
            },
            "adherence": self.adherence and self.adherence.to_dict(),
            "steering": self.steering and self.steering.to_dict(),
            "endurance": self.endurance and self.endurance.to_dict(),
        }

    def to_markdown(self) -> str:
        """A page for the documentation."""
        manifest = self.plan.manifest
        parts = [
            f"# How well the `{manifest.name}` model follows its prompts\n",
            f"Measured on {self.date[:10]} by `benchmarks/evaluate_shapes.py` on the exported plan "
            f"{self.plan.identity[:12]} ({manifest.precision}, {manifest.backend}).\n",
        ]
        if self.adherence:
            parts.append("## Adherence\n\n" + self.adherence.to_markdown())
        if self.steering:
            text = "The prompt took the place of another one at 5 seconds; judged from a second later on.\n\n"
            parts.append("## Steering\n\n" + text + self.steering.to_markdown())
        if self.endurance:
            parts.append("## Endurance\n\n" + self.endurance.to_markdown())
        return "\n".join(parts)


def generator(plan: Plan, progress: Callable[[], object]) -> Generate:
    """A `Generate` that rolls the plan out; calls `progress` after every video."""

    def generate(prompt: str, seed: int, frames: int) -> np.ndarray:
        video: list[np.ndarray] = []
        for chunk in Rollout(plan, prompt=prompt, seed=seed):
            video.extend(chunk.frames[0])
            if len(video) >= frames:
                break
        progress()
        return np.stack(video[:frames])

    return generate


def steerer(plan: Plan, progress: Callable[[], object]) -> Steer:
    """A `Steer` that rolls the plan out; calls `progress` after every video."""

    def steer(first: str, second: str, seed: int, before: int, after: int) -> np.ndarray:
        rollout = Rollout(plan, prompt=first, seed=seed)
        made = 0
        while made < before:
            made += next(rollout).frames.shape[1]
        rollout.set_prompt(second)
        video: list[np.ndarray] = []
        while len(video) < after:
            video.extend(next(rollout).frames[0])
        progress()
        return np.stack(video[:after])

    return steer


def evaluate(plan: Plan, parts: list[str], seeds: int) -> Report:
    """Runs the chosen parts, with a progress bar on stderr where that is a terminal."""
    stream, fps = plan.manifest.stream, shapes().fps
    if (stream.fps, stream.batch) != (fps, 1):
        got = f"fps {stream.fps:g}, batch {stream.batch}"
        raise PlanError(f"plan: got {got}, expected fps {fps:g}, batch 1; export the preset shapes")
    adherence = steering = endurance = None
    if "adherence" in parts:
        with tqdm(total=len(adherence_cases(seeds)), desc="adherence", unit="clip", disable=None) as bar:
            adherence = evaluate_adherence(generator(plan, bar.update), seeds)
    if "steering" in parts:
        with tqdm(total=len(steering_cases()), desc="steering", unit="clip", disable=None) as bar:
            steering = evaluate_steering(steerer(plan, bar.update))
    if "endurance" in parts:
        with tqdm(total=len(endurance_cases(ENDURANCE_PROMPTS)), desc="endurance", unit="video", disable=None) as bar:
            endurance = evaluate_endurance(generator(plan, bar.update), ENDURANCE_PROMPTS)
    return Report(datetime.now(timezone.utc).isoformat(timespec="seconds"), plan, adherence, steering, endurance)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("plan", type=Path, help="folder that videossm-export wrote")
    parser.add_argument("--seeds", type=_count, default=3, help="clips of each pair of colour and shape (default 3)")
    parser.add_argument("--only", choices=PARTS, help="one of the evaluations")
    parser.add_argument("--out", type=_writable, help="Markdown file; stdout without it")
    parser.add_argument("--json", type=_writable, help="JSON file with every clip")
    options = parser.parse_args(arguments)
    try:
        parts = [options.only] if options.only else PARTS
        report = evaluate(Plan.open(options.plan), parts, options.seeds)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        options.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    if options.out:
        options.out.write_text(report.to_markdown(), encoding="utf-8")
    else:
        print(report.to_markdown())
    return 0


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected 1 or more; change it")
    return int(text)


def _writable(text: str) -> Path:
    """Minutes of work follow: a folder that is not there is refused before them."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"got {text}, expected a file in a folder that exists; create the folder")
    return path


if __name__ == "__main__":
    sys.exit(main())
