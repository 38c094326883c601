"""`videossm-run`: a plan and a prompt become a video."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from videossm.runtime.cli import Command, drop, print_json, progress, say
from videossm.runtime.cli.device import device_options
from videossm.runtime.cli.interrupt import Interrupt, noted_interrupt
from videossm.runtime.cli.measure import process_age_s
from videossm.runtime.errors import UserError, shown
from videossm.runtime.plan import Plan
from videossm.runtime.preflight import require_run
from videossm.runtime.prompt import open_tokenizer
from videossm.runtime.rollout import Rollout
from videossm.runtime.sinks import check_sink, open_sink, side_by_side
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
    _check_prompts(opened, [*([] if prompt is None else [prompt]), *switches.values()])
    if resume is None and prompt is None and opened.manifest.text is not None:
        raise UserError("--prompt: got none, expected a text, or --resume FILE; describe the video")
    if resume is not None and seed is not None:
        raise UserError("--seed: got one with --resume, expected none, a state has its own; leave it out")
    require_run(opened, device)
    if resume is None:
        prompts = None if prompt is None else _for_batch(opened, prompt)
        rollout = Rollout(opened, prompts, seed or 0, device, threads, provider=provider)
    else:
        rollout = Rollout.resume(opened, resume, device, threads, provider)
        if prompt is not None:
            rollout.set_prompt(_for_batch(opened, prompt))
    with rollout:
        length = _length(opened, seconds, chunks, endless=output == "-", first=rollout.next_index)
        _check_times(rollout, prompt_at, length, chunks is not None)
        report = _roll(rollout, length, switches, output, save_state, interrupt)
    if as_json:
        print_json(vars(report))
    else:
        say(_summary(report))
    if report.interrupted:
        context.exit(interrupt.exit_code)


def _length(plan: Plan, seconds: float | None, chunks: int | None, endless: bool, first: int = 0) -> int | None:
    """Chunks to make from chunk `first` on; None for no end, or that of a clip."""
    if seconds is not None and chunks is not None:
        raise UserError("--seconds: got --chunks as well, expected one of them; leave one out")
    if chunks is not None:
        if chunks < 1:
            raise UserError(f"--chunks: got {chunks}, expected 1 or more; give a length")
        return chunks
    if seconds is None:
        if endless or plan.manifest.stream.chunks is not None:
            return None
        seconds = _DEFAULT_SECONDS
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"--seconds: got {seconds:g}, expected more than 0; give a length")
    return plan.manifest.stream.chunks_in(seconds, first)


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
        chunk = plan.manifest.stream.chunk_at(seconds)
        if chunk in switches:
            start_s = plan.manifest.stream.start_s(chunk)
            raise UserError(f"--prompt-at: got two prompts for the chunk at {start_s:g} s, expected one")
        switches[chunk] = text
    return switches


def _check_prompts(plan: Plan, texts: Iterable[str]) -> None:
    """Raises PromptError for the first wrong one of `texts`, before an engine is loaded."""
    texts = list(texts)
    if not texts:
        return
    tokenizer = open_tokenizer(plan)
    if tokenizer is None:
        raise UserError(f"--prompt: got one for {plan.name}, which takes no text, expected none; leave it out")
    for prompt in texts:
        tokenizer.encode([prompt])


def _check_times(rollout: Rollout, prompt_at: tuple[str, ...], length: int | None, in_chunks: bool) -> None:
    """Raises UserError unless a chunk of this run starts at every time of `prompt_at`, or within a chunk after it."""
    first, stream = rollout.next_index, rollout.plan.manifest.stream
    end = min(math.inf if length is None else first + length, stream.chunks or math.inf)
    for given in prompt_at:
        time = given.partition(":")[0]
        chunk = stream.chunk_at(float(time))
        if chunk < first:
            raise UserError(f"--prompt-at {time}: the video goes on at {stream.start_s(first):g} s; use that at least.")
        if chunk >= end:
            more = ""
            if chunk < (stream.chunks or math.inf):  # a clip cannot be longer
                seconds = math.ceil(stream.start_s(chunk + 1) - stream.start_s(first))
                more = f", or --chunks {chunk + 1 - first}" if in_chunks else f", or --seconds {seconds}"
            raise UserError(
                f"--prompt-at {time}: the next chunk starts at {stream.start_s(chunk):g} s, but the video ends at "
                f"{stream.start_s(int(end)):g} s; use at most {stream.start_s(int(end) - 1):g}{more}."
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
    begun = {"start_s": stream.start_s(first), "prompt": rollout.prompts[0]} if rollout.prompts else None
    report = Report(plan.name, rollout.seeds, [begun] if begun else [], first, save_state)
    width, first_frame = stream.width * stream.batch, stream.frames_before(first)
    prompts = {chunk: _for_batch(plan, text) for chunk, text in switches.items()}
    interrupt.rollout = rollout
    if interrupt.seen:  # while the engines were loaded
        rollout.cancel()
    started = perf_counter()
    with open_sink(output, width, stream.height, stream.fps, first_frame) as sink:
        try:
            with progress(length, "chunk") as bar:
                for chunk in rollout.play(length, prompts, ahead=save_state is None):
                    frames = side_by_side(chunk.frames)
                    sink.write(frames)
                    report.time_to_first_frame_s = report.time_to_first_frame_s or process_age_s()
                    if save_state is not None:
                        rollout.save(save_state)
                    if chunk.index in switches:
                        report.prompts.append({"start_s": chunk.start_s, "prompt": switches[chunk.index]})
                    report.chunks += 1
                    report.frames += len(frames)
                    bar.update()
        except BrokenPipeError:  # the reader of stdout has seen enough
            drop(sys.stdout)
    report.output_files, report.interrupted = sink.files, interrupt.seen
    _finish(report, plan, perf_counter() - started)
    return report


def _finish(report: Report, plan: Plan, wall_s: float) -> None:
    report.seconds = report.frames / plan.manifest.stream.fps
    report.wall_s = wall_s
    if report.chunks:
        report.ms_per_chunk = 1000 * wall_s / report.chunks
        report.realtime_factor = report.seconds / wall_s


def _for_batch(plan: Plan, prompt: str) -> list[str]:
    """The command line gives every stream of a batch the same prompt; the seeds differ."""
    return [prompt] * plan.manifest.stream.batch


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
