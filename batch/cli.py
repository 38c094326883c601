"""`videossm-batch`: rows of prompts become videos, on this machine or a cluster."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from videossm.batch.folder import Folder, fetched
from videossm.batch.job import Cluster, Job
from videossm.batch.rows import BadRow, Request, read_rows
from videossm.batch.video import result_of
from videossm.runtime.cli import WRONG_INPUT, Command, one_line, print_json, progress, say
from videossm.runtime.errors import BackendError, SinkError, UserError
from videossm.runtime.output_file import check_output_folder
from videossm.runtime.plan import Plan

RESULTS = "results.jsonl"
_ERRORS_SHOWN = 20
_Results = dict[int, dict[str, Any]]  # by line


@click.command(cls=Command)
@click.argument("prompts", type=click.Path())
@click.option("-o", "--output", required=True, help="Folder of the videos: a path, or what fsspec opens, as s3://..")
@click.option("--plan", required=True, help="A path that every machine sees, or what fsspec opens.")
@click.option("--address", help="Of a Ray cluster: ray://host:10001, host:6379 or auto. This machine if not given.")
@click.option("--workers", type=click.IntRange(1), help="As many as fit if not given; each holds one plan.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="A worker's; as videossm-run if not given.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of a worker on a CPU.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.pass_context
def batch(
    context: click.Context,
    prompts: str,
    output: str,
    plan: str,
    address: str | None,
    workers: int | None,
    device: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Makes a video of each row of PROMPTS, a file of JSON lines: id, prompt, seed, seconds.

    The same command goes on where an earlier one was interrupted or killed. A bad row is told and ends nothing; then
    the exit code is 2.
    """
    if missing := [name for name in ("fsspec", "ray") if find_spec(name) is None]:
        raise BackendError(f"videossm-batch: got no {missing[0]}, expected it installed; pip install 'videossm[ray]'")
    started = perf_counter()
    job = Job(_absolute(plan), _absolute(output), device, threads)
    folder = Folder(job.output)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="videossm-"))
        opened = Plan.open(fetched(job.plan, Path(scratch)))
        _check_sides(opened)
        if folder.on_disk:
            check_output_folder("output", Path(folder.path()), [opened.path, Path(prompts)], SinkError)
        results, missing_rows = _sorted_out(prompts, opened, folder)
        earlier, bad = sum("error" not in r for r in results.values()), sum("error" in r for r in results.values())
        say(f"{len(results) + len(missing_rows)} rows: {earlier} done before, {bad} bad, {len(missing_rows)} to make")
        if missing_rows:
            on_gpu = device == "cuda" or (device is None and opened.manifest.backend != "onnxruntime")
            cluster = stack.enter_context(Cluster(address, job, on_gpu))
            results |= _make(cluster, missing_rows, _workers(cluster, workers, len(missing_rows)), opened)
    _write(folder, results)
    _end(context, results, earlier, perf_counter() - started, as_json)


def _absolute(url: str) -> str:
    """Workers have another current folder."""
    return url if "://" in url else str(Path(url).absolute())


def _check_sides(plan: Plan) -> None:
    stream = plan.manifest.stream
    width = stream.width * stream.batch
    if width % 2 or stream.height % 2:
        got = f"frames of {width}x{stream.height}"
        raise SinkError(f"plan: got {got}, expected even sides for mp4; use videossm-run with .gif, .y4m or .png")


def _sorted_out(prompts: str, plan: Plan, folder: Folder) -> tuple[_Results, list[tuple[int, Request]]]:
    """What is known already, the bad rows among it, and what is to be made."""
    known: _Results = {}
    missing: list[tuple[int, Request]] = []
    made = folder.names()
    try:
        with open(prompts, "rb") as lines:
            for line, row in read_rows(lines, plan):
                if isinstance(row, BadRow):
                    known[line] = {"id": row.id, "error": row.error}
                elif f"{row.id}.json" not in made:
                    missing.append((line, row))
                else:
                    known[line] = _earlier(row, folder)
    except OSError as error:
        raise UserError(f"prompts: cannot read {prompts} ({error.strerror}); check the path") from error
    if not known and not missing:
        raise UserError(f"prompts: got {prompts} without a row, expected JSON lines; add some")
    return known, missing


def _earlier(row: Request, folder: Folder) -> dict[str, Any]:
    try:
        return result_of(folder, row) or {"id": row.id, "error": "id: its result was removed meanwhile; start again"}
    except UserError as error:
        return {"id": row.id, "error": str(error)}


def _workers(cluster: Cluster, wanted: int | None, rows: int) -> int:
    slots = cluster.slots()
    if slots < 1:
        raise BackendError(f"workers: got a cluster with room for none, expected one; {_MORE}")
    if wanted is not None and wanted > slots:
        raise BackendError(f"--workers: got {wanted}, expected at most {slots}, which fit; {_MORE}")
    return min(wanted or slots, rows)


_MORE = "add machines, use fewer --threads, or another --device"


def _make(cluster: Cluster, rows: list[tuple[int, Request]], workers: int, plan: Plan) -> _Results:
    """Says the preflight's answer, then makes them. Raises BackendError where no worker could run the plan."""
    problems, expected = cluster.preflight()
    if problems:
        raise BackendError("; ".join(problems))
    for text in [f"preflight: {plan.name} runs here, {workers} at a time", *expected]:
        say(text)
    results: _Results = {}
    videos_s = 0.0
    started = perf_counter()
    with progress(len(rows), "video") as bar:
        for line, result in cluster.results(rows, workers):
            results[line] = result
            videos_s += result.get("seconds", 0.0)
            bar.set_postfix_str(f"{videos_s / (perf_counter() - started):.2f} times real time")
            bar.update()
    return results


def _write(folder: Folder, results: _Results) -> None:
    lines = [json.dumps({"line": number, **results[number]}) + "\n" for number in sorted(results)]
    folder.write(RESULTS, "".join(lines).encode())


def _end(context: click.Context, results: _Results, earlier: int, wall_s: float, as_json: bool) -> None:
    errors = [number for number in sorted(results) if "error" in results[number]]
    for number in errors[:_ERRORS_SHOWN]:
        say(one_line(f"line {number}: {results[number]['error']}"))
    if len(errors) > _ERRORS_SHOWN:
        say(f".. and {len(errors) - _ERRORS_SHOWN} more, in {RESULTS}")
    videos = [result for result in results.values() if "error" not in result]
    seconds = sum(result["seconds"] for result in videos)
    if as_json:
        print_json(
            {
                "videos": len(videos),
                "made_before": earlier,
                "errors": len(errors),
                "seconds": seconds,
                "wall_s": wall_s,
                "rows": [{"line": line, **result} for line, result in sorted(results.items())],
            }
        )
    else:
        there = f"; {earlier} of them were there" if earlier else ""
        say(f"{len(videos)} videos, {seconds:g} s, in {wall_s:.1f} s{there}; {len(errors)} errors")
    if errors:
        context.exit(WRONG_INPUT)


if __name__ == "__main__":
    batch()
