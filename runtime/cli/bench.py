"""`videossm-bench`: how long a chunk takes, where the time goes, and how much memory it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from time import perf_counter
from typing import Any

import click
import numpy as np

from videossm.runtime.chunk import Chunk
from videossm.runtime.cli import Command, print_json, print_text, progress
from videossm.runtime.cli.device import device_options
from videossm.runtime.cli.measure import process_age_s, resident_bytes
from videossm.runtime.errors import UserError
from videossm.runtime.plan import Plan
from videossm.runtime.preflight import require_run
from videossm.runtime.prompt import PromptTokenizer
from videossm.runtime.rollout import Rollout
from videossm.runtime.state import Snapshot

# An engine over a pair of buffers that swap is two passes, by turns. Each runs once and is captured the second time: so
# what first runs as a chunk leaves the window is captured three chunks later.
CAPTURES = 3


@click.command(cls=Command)
@click.argument("plan", type=click.Path())
@click.option(
    "--chunks", type=int, default=40, show_default=True, help="Chunks to time, after those that fill the window."
)
@click.option("--prompt", help="The tokenizer's first word if not given.")
@device_options
@click.option("--threads", type=int, help="Of the CPU; ONNX Runtime's own number if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def bench(
    plan: str,
    chunks: int,
    prompt: str | None,
    device: str | None,
    provider: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Times the rollout of PLAN in its steady state: with a full window, from which chunks leave."""
    if chunks < 1:
        raise UserError(f"--chunks: got {chunks}, expected 1 or more; give a number")
    opened = Plan.open(plan)
    text = opened.manifest.text
    if prompt is None and text is not None:
        prompt = PromptTokenizer(opened.tokenizer_file, text).words()[0]
    require_run(opened, device)
    prompts = None if prompt is None else [prompt] * opened.manifest.stream.batch
    with Rollout(opened, prompts, 0, device, threads, provider=provider) as rollout:
        result = measure(rollout, chunks)
    if as_json:
        print_json({"plan": opened.name, **result})
    else:
        print_text(_table(result))


def measure(rollout: Rollout, chunks: int) -> dict[str, Any]:
    """Rolls a fresh `rollout` out: its first chunk, those until the window is full and TensorRT has captured all that
    it runs, then `chunks` that are timed.

    A chunk is taken from the rollout before the frames of the one before it are waited for, as videossm-run does.
    A clip that ends begins anew, outside of what is timed.
    """
    stream, window = rollout.plan.manifest.stream, rollout.plan.manifest.window
    start = rollout.snapshot()
    _wait(next(rollout))
    first_s = process_age_s()
    for _ in range((window.chunks if window else 0) + CAPTURES):
        _rewind(rollout, start)
        _wait(next(rollout))
    before, resident_before = rollout.timings, resident_bytes()
    wall_s, behind, frames = np.empty(chunks), None, 0
    with progress(chunks, "chunk") as bar:
        for index in range(chunks):
            _rewind(rollout, start)
            started = perf_counter()
            chunk = next(rollout)
            if behind is not None:
                frames += _wait(behind)
            if index + 1 == chunks:
                frames += _wait(chunk)
            behind = chunk
            wall_s[index] = perf_counter() - started
            bar.update()
    engines_s = {name: seconds - before[name] for name, seconds in rollout.timings.items()}
    total_s, usage = float(wall_s.sum()), rollout.device_usage
    return {
        "device": rollout.device,
        "chunks": chunks,
        "time_to_first_frame_s": first_s,
        "ms_per_chunk_p50": 1000 * float(np.percentile(wall_s, 50)),
        "ms_per_chunk_p95": 1000 * float(np.percentile(wall_s, 95)),
        "realtime_factor": frames / stream.fps / total_s,
        "engine_ms_per_chunk": {name: 1000 * seconds / chunks for name, seconds in engines_s.items()},
        "outside_engines_share": 1 - sum(engines_s.values()) / total_s,
        "resident_bytes": resident_bytes(),
        "resident_growth_bytes": resident_bytes() - resident_before,
        "device_usage": None if usage is None else asdict(usage),
    }


def _rewind(rollout: Rollout, start: Snapshot) -> None:
    """To `start`, if the clip is over."""
    if rollout.next_index == rollout.plan.manifest.stream.chunks:
        rollout.restore(start)


def _wait(chunk: Chunk) -> int:
    """Waits for the frames; returns how many they are."""
    return chunk.frames.shape[1]


def _table(result: dict[str, Any]) -> str:
    rows = [
        ("first frame", f"{result['time_to_first_frame_s']:.2f} s after the start"),
        ("a chunk", f"{result['ms_per_chunk_p50']:.2f} ms, the median (p95 {result['ms_per_chunk_p95']:.2f})"),
        *((f"  {name}", f"{ms:.2f} ms, the mean") for name, ms in result["engine_ms_per_chunk"].items()),
        ("outside engines", f"{100 * result['outside_engines_share']:.2f}%"),
        ("real time", f"{result['realtime_factor']:.2f}x"),
        ("resident", f"{result['resident_bytes'] / 1e6:.0f} MB, grew {result['resident_growth_bytes'] / 1e6:.2f} MB"),
    ]
    if result["device_usage"] is not None:
        rows += _usage_rows(result["device_usage"])
    return "\n".join(f"{name:<18}{value}" for name, value in rows)


def _usage_rows(usage: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "GPU memory", f"{usage['used_bytes'] / 1e6:.0f} MB in use, by all programs; by this one:"
    kinds = {"weights": "GPU", "activations": "GPU", "buffers": "GPU", "pinned": "host"}
    for kind, where in kinds.items():
        size_bytes = usage[f"{kind}_bytes"]
        yield f"  {kind}", "in ONNX Runtime's arena" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB ({where})"
    yield "CUDA graphs", str(usage["graphs"])
    yield from (("note", note) for note in usage["notes"])


if __name__ == "__main__":
    bench()
