"""`videossm-run`: a plan and a prompt become a video."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from videossm.runtime.chunk import Chunk
from videossm.runtime.cli import Command, drop, print_json, progress, say
from videossm.runtime.cli.device import device_options
from videossm.runtime.cli.interrupt import Interrupt, noted_interrupt
from videossm.runtime.cli.measure import process_age_s
from videossm.runtime.errors import UserError, shown
from videossm.runtime.plan import Plan
from videossm.runtime.preflight import require_run
from videossm.runtime.prompt import PromptTokenizer
from videossm.runtime.rollout import Rollout
from videossm.runtime.sinks import check_sink, open_sink
from videossm.runtime.state import check_state_path

_DEFAULT_SECONDS = 5.0


@dataclass
class Report:
    """What `--json` prints."""

    plan: str
    seeds: list[int]
    prompts: list[dict[str, Any]]  # from which second of the stream on, which text
    first_chunk: int
    state_file: str | None
    output_files: list[str] = field(default_factory=list)
    chunks: int = 0
    frames: int = 0
    seconds: float = 0.0  # of video
    wall_s: float = 0.0
    time_to_first_frame_s: float | None = None  # since the process started, its chunk written
    ms_per_chunk: float | None = None
    realtime_factor: float | None = None  # seconds of video in a second
    interrupted: bool = False


@click.command(cls=Command)
@click.argument("plan", type=click.Path())
@click.option("--prompt", help="What the video shows. Needed, unless --resume is given.")
@click.option(
    "--prompt-at", multiple=True, metavar="SECONDS:TEXT", help="Another prompt from that second of the stream on."
)
@click.option(
    "--seconds", type=float, help="Length; rounded up to whole chunks. 5 if neither is given, endless for -o -."
)
@click.option("--chunks", type=int, help="Length in chunks.")
@click.option("--seed", type=int, help="0 if not given; the same seed gives the same video.")
@click.option("-o", "--output", default="out.mp4", show_default=True, help=".mp4 .gif .y4m .png, or - for raw rgb24.")
@click.option("--save-state", metavar="FILE", help="Written after every chunk, whole or not at all.")
@click.option(
    "--resume",
    metavar="FILE",
    help="Goes on from a saved state, into a new file; --seconds or --chunks are what is added.",
)
@device_options
@click.option("--threads", type=int, help="Of the CPU; ONNX Runtime's own number if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.pass_context
def run(
    context: click.Context,
    plan: str,
    prompt: str | None,
    prompt_at: tuple[str, ...],
    seconds: float | None,
    chunks: int | None,
    seed: int | None,
    output: str,
    save_state: str | None,
    resume: str | None,
    device: str | None,
    provider: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Rolls PLAN out into a video. Existing files of that name are overwritten as the frames come.

    Ctrl-C or SIGTERM drops the chunk in hand and ends; the file then holds what was made before. A second one ends the
    process at once.
    """
    interrupt = context.with_resource(noted_interrupt())
    if as_json and output == "-":
        raise UserError("--json: got -o - as well, expected stdout to be free; write to a file")
    opened = Plan.open(plan)
    _check_outputs(output, save_state, resume, opened)
    length = _length(opened, seconds, chunks, endless=output == "-")
    switches = _switches(opened, prompt_at)
    _check_prompts(opened, [*switches.values(), *([prompt] if resume is not None and prompt is not None else [])])
    if resume is None:
        if prompt is None:
            raise UserError("--prompt: got none, expected a text, or --resume FILE; describe the video")
        require_run(opened, device)
        rollout = Rollout(opened, _for_batch(opened, prompt), seed or 0, device, threads, provider=provider)
    else:
        if seed is not None:
            raise UserError("--seed: got one with --resume, expected none, a state has its own; leave it out")
        require_run(opened, device)
        rollout = Rollout.resume(opened, resume, device, threads, provider)
        if prompt is not None:
            rollout.set_prompt(_for_batch(opened, prompt))
    _check_times(rollout, prompt_at, length, chunks is not None)
    report = _roll(rollout, length, switches, output, save_state, interrupt)
    if as_json:
        print_json(vars(report))
    else:
        say(_summary(report))
    if report.interrupted:
        context.exit(interrupt.exit_code)


def _length(plan: Plan, seconds: float | None, chunks: int | None, endless: bool) -> int | None:
    """Chunks to make; None for no end."""
    if seconds is not None and chunks is not None:
        raise UserError("--seconds: got --chunks as well, expected one of them; leave one out")
    if chunks is not None:
        if chunks < 1:
            raise UserError(f"--chunks: got {chunks}, expected 1 or more; give a length")
        return chunks
    if seconds is None:
        if endless:
            return None
        seconds = _DEFAULT_SECONDS
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"--seconds: got {seconds:g}, expected more than 0; give a length")
    return max(1, _chunk_from(plan, seconds))


def _chunk_from(plan: Plan, seconds: float) -> int:
    """The first chunk that starts at `seconds` or later."""
    return math.ceil(seconds / plan.chunk_seconds - 1e-9)


def _check_outputs(output: str, save_state: str | None, resume: str | None, plan: Plan) -> None:
    """Raises SinkError, StateError or UserError, before any work is done, for a place that cannot be written.

    A stream may go on in the state that it is resumed from; it must not replace its own first part.
    """
    read = [plan.path, *([Path(resume)] if resume is not None else [])]
    check_sink(output, read)
    if save_state is not None:
        check_state_path(save_state, [plan.path, *([Path(output)] if output != "-" else [])])
    if resume is not None:
        _check_new(output)


def _check_new(output: str) -> None:
    """Pictures go on counting."""
    if output != "-" and not output.lower().endswith(".png") and Path(output).exists():
        raise UserError(
            f"-o: got {output}, which exists, expected a new file with --resume, as it takes the frames to come only; "
            "choose another -o"
        )


def _switches(plan: Plan, prompt_at: tuple[str, ...]) -> dict[int, str]:
    """Which chunk starts with which prompt."""
    switches: dict[int, str] = {}
    for given in prompt_at:
        time, colon, text = given.partition(":")
        try:
            seconds = float(time)
        except ValueError:
            seconds = math.nan
        if not colon or not (math.isfinite(seconds) and seconds >= 0):
            raise UserError(f"--prompt-at: got {shown(given)}, expected SECONDS:TEXT, as 2.5:a red circle; change it")
        chunk = _chunk_from(plan, seconds)
        if chunk in switches:
            raise UserError(
                f"--prompt-at: got two prompts for the chunk at {chunk * plan.chunk_seconds:g} s, expected one"
            )
        switches[chunk] = text
    return switches


def _check_prompts(plan: Plan, texts: Iterable[str]) -> None:
    """Raises PromptError for the first wrong one of `texts`, before an engine is loaded."""
    texts = list(texts)
    if texts:
        tokenizer = PromptTokenizer(plan.tokenizer_file, plan.manifest.text.length)
        for text in texts:
            tokenizer.encode([text])


def _check_times(rollout: Rollout, prompt_at: tuple[str, ...], length: int | None, in_chunks: bool) -> None:
    """Raises UserError unless a chunk of this run starts at every time of `prompt_at`, or within a chunk after it."""
    first, chunk_s = rollout.next_index, rollout.plan.chunk_seconds
    for given in prompt_at:
        time = given.partition(":")[0]
        chunk = _chunk_from(rollout.plan, float(time))
        if chunk < first:
            raise UserError(f"--prompt-at {time}: the video goes on at {first * chunk_s:g} s; use that at least.")
        if length is not None and chunk >= first + length:
            needed = chunk + 1 - first
            longer = f"--chunks {needed}" if in_chunks else f"--seconds {math.ceil(needed * chunk_s)}"
            raise UserError(
                f"--prompt-at {time}: the next chunk starts at {chunk * chunk_s:g} s, but the video ends there; "
                f"use at most {(first + length - 1) * chunk_s:g}, or add {longer}."
            )


def _roll(
    rollout: Rollout,
    length: int | None,
    switches: dict[int, str],
    output: str,
    save_state: str | None,
    interrupt: Interrupt,
) -> Report:
    plan, first = rollout.plan, rollout.next_index
    stream = plan.manifest.stream
    start = {"start_s": first * plan.chunk_seconds, "prompt": rollout.prompts[0]}
    report = Report(plan.name, rollout.seeds, [start], first, save_state)
    width, first_frame = stream.width * stream.batch, first * stream.frames_per_chunk
    interrupt.rollout = rollout
    started = perf_counter()
    with open_sink(output, width, stream.height, stream.fps, first_frame) as sink:
        try:
            with progress(length, "chunk") as bar:
                made = _chunks(rollout, length, switches, report, interrupt)
                for chunk in made if save_state is not None else _one_ahead(made):
                    sink.write(_side_by_side(chunk.frames, stream.batch))
                    report.time_to_first_frame_s = report.time_to_first_frame_s or process_age_s()
                    if save_state is not None:
                        rollout.save(save_state)
                    report.chunks += 1
                    bar.update()
        except BrokenPipeError:  # the reader of stdout has seen enough
            drop(sys.stdout)
    report.output_files, report.interrupted = sink.files, interrupt.seen
    _finish(report, plan, perf_counter() - started)
    return report


def _chunks(
    rollout: Rollout, length: int | None, switches: dict[int, str], report: Report, interrupt: Interrupt
) -> Iterator[Chunk]:
    """Those of this run, up to its length or a signal."""
    for _ in itertools.count() if length is None else range(length):
        if interrupt.seen:
            return
        _switch(rollout, switches, report)
        chunk = next(rollout, None)
        if chunk is None:
            return
        yield chunk


def _one_ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks, but a GPU has the next one to work on while the frames of this one arrive and are written.

    The first one, and those whose frames are there already, are not kept waiting. (A state, which is saved with every
    chunk, is that after the last chunk queued: so none is queued then.)
    """
    behind: Chunk | None = None
    for index, chunk in enumerate(chunks):
        if behind is not None:
            yield behind
        behind = chunk
        if index == 0 or chunk.ready:
            yield chunk
            behind = None
    if behind is not None:
        yield behind


def _switch(rollout: Rollout, switches: dict[int, str], report: Report) -> None:
    text = switches.get(rollout.next_index)
    if text is not None:
        rollout.set_prompt(_for_batch(rollout.plan, text))
        report.prompts.append({"start_s": rollout.next_index * rollout.plan.chunk_seconds, "prompt": text})


def _finish(report: Report, plan: Plan, wall_s: float) -> None:
    report.frames = report.chunks * plan.manifest.stream.frames_per_chunk
    report.seconds = report.chunks * plan.chunk_seconds
    report.wall_s = wall_s
    if report.chunks:
        report.ms_per_chunk = 1000 * wall_s / report.chunks
        report.realtime_factor = report.seconds / wall_s


def _for_batch(plan: Plan, prompt: str) -> list[str]:
    """The command line gives every stream of a batch the same prompt; the seeds differ."""
    return [prompt] * plan.manifest.stream.batch


def _side_by_side(frames: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    """[B, T, H, W, 3] as one picture [T, H, B x W, 3]."""
    return frames if batch == 1 else np.concatenate(list(frames), axis=2)


def _summary(report: Report) -> str:
    if report.interrupted and not report.chunks:
        return "interrupted before the first chunk; nothing written."
    files = report.output_files
    where = files[0] if len(files) == 1 else f"{files[0]} .. {files[-1]}" if files else "nothing"
    speed = f", {report.ms_per_chunk:.1f} ms a chunk, {report.realtime_factor:.1f}x real time" if report.chunks else ""
    ended = "interrupted: " if report.interrupted else ""
    return f"{ended}{where}: {report.frames} frames, {report.seconds:g} s of video{speed}"


if __name__ == "__main__":
    run()
