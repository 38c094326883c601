"""`videossm-inspect`: what is in a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click
from pydantic import BaseModel, ConfigDict, ValidationError

from videossm.runtime import contract
from videossm.runtime.cli import Command, print_json, print_text
from videossm.runtime.errors import PlanError
from videossm.runtime.manifest import REPORT_FILE, EngineSpec, Manifest, TensorSpec
from videossm.runtime.plan import Plan
from videossm.runtime.plan_file import read_small
from videossm.runtime.preflight import device_bytes


class ReportSummary(BaseModel):
    """The part of report.json that is shown; all of it is the affair of what wrote it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    summary: dict[str, str | int | float]


@click.command(cls=Command)
@click.argument("plan", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def inspect(plan: str, as_json: bool) -> None:
    """Verifies PLAN and shows its engines, tensors, states, schedule, versions, and what its precision costs."""
    opened = Plan.open(plan)
    states, report = state_bytes(opened.manifest), report_summary(opened)
    if as_json:
        manifest = opened.manifest.model_dump()
        more = {"state_bytes": states, "device_bytes": device_bytes(opened.manifest), "report_summary": report}
        print_json({"path": str(opened.path), "identity": opened.identity, **more, **manifest})
    else:
        print_text("\n".join(_lines(opened, states, report)))


def report_summary(plan: Plan) -> dict[str, str | int | float]:
    """What report.json says in short; empty where the plan lists none. Raises PlanError where that is no report."""
    if REPORT_FILE not in plan.manifest.files:
        return {}
    try:
        return ReportSummary.model_validate_json(read_small(plan.path, REPORT_FILE)).summary
    except ValidationError:
        expected = "an object of texts and numbers; export the plan again"
        raise PlanError(f"{REPORT_FILE}: summary: got something else or nothing, expected {expected}") from None


def state_bytes(manifest: Manifest) -> dict[str, int]:
    """What a stream carries from chunk to chunk, by kind, in bytes; it does not grow with the video."""
    engines, chunks = manifest.engines, manifest.stream.window_frames // manifest.stream.chunk_frames
    window = {pair.present for pair in manifest.window}
    return {
        "window": chunks * _bytes(engines.step.outputs, window),
        "window_latents": chunks * _bytes(engines.step.inputs, {contract.LATENT}),
        "memory": _bytes(engines.step.inputs, {pair.read for pair in manifest.memory}),
        "prompt": _bytes(engines.step.inputs, set(manifest.prompt)),
        "decoder_caches": _bytes(engines.decoder.inputs, {pair.past for pair in manifest.caches}),
    }


def _bytes(tensors: Iterable[TensorSpec], names: set[str]) -> int:
    return sum(tensor.size_bytes for tensor in tensors if tensor.name in names)


def _lines(plan: Plan, states: dict[str, int], report: dict[str, str | int | float]) -> Iterator[str]:
    manifest = plan.manifest
    stream, sampler = manifest.stream, manifest.sampler
    yield f"{manifest.name}  {manifest.precision}, {manifest.backend}, lowering {manifest.lowering}  {plan.path}"
    yield f"identity   {plan.identity}"
    yield (
        f"stream     {stream.width}x{stream.height} at {stream.fps:g} frames/s, batch {stream.batch}; a chunk is "
        f"{stream.frames_per_chunk} frames, {plan.chunk_seconds:g} s"
    )
    yield (
        f"window     {stream.window_frames} latent frames, {stream.sink_frames} of them the sink; chunks of "
        f"{stream.chunk_frames}; positions by {stream.rope_frame}"
    )
    yield f"schedule   {sampler.kind}, {len(sampler.sigmas)} steps: " + " ".join(f"{s:.4g}" for s in sampler.sigmas)
    yield f"text       {manifest.text.length} tokens"
    yield "state      " + ", ".join(f"{name} {_size(size)}" for name, size in states.items())
    if manifest.target is not None:
        later = " and later" if manifest.target.later else ""
        yield f"target     {' '.join(manifest.target.architectures)}{later}"
    yield f"memory     at least {_size(device_bytes(manifest))} of the device that runs it"
    yield "versions   " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    if report:
        yield "report"
    width = max(map(len, report), default=0)
    for label, value in report.items():
        yield f"  {label:<{width}}  {value}"
    yield "files"
    for name, file in manifest.files.items():
        yield f"  {name:<24}{_size(file.size_bytes):>10}  {file.sha256[:16]}"
    for name, engine in manifest.engines.items():
        yield from _engine_lines(name, engine)


def _engine_lines(name: str, engine: EngineSpec) -> Iterator[str]:
    yield f"{name}  ({engine.file})"
    for arrow, tensors in (("in ", engine.inputs), ("out", engine.outputs)):
        for tensor in tensors:
            shape = "x".join(str(side) for side in tensor.shape)
            yield f"  {arrow} {tensor.name:<24}{tensor.dtype:<8} {shape}"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


if __name__ == "__main__":
    inspect()
