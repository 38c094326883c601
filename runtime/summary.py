"""What is in a plan, for people: what `videossm-inspect` prints."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, ValidationError

from videossm.runtime.errors import PlanError
from videossm.runtime.manifest import REPORT_FILE, SAMPLE, EngineSpec, Manifest
from videossm.runtime.plan import Plan
from videossm.runtime.plan_file import read_small
from videossm.runtime.preflight import device_bytes


class ReportSummary(BaseModel):
    """The part of report.json that is shown. `videossm.calib` writes more into it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    summary: dict[str, str | int | float]


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
    kinds = {state.name: state.kind for state in manifest.states}
    sizes = dict.fromkeys(("ring", "carry", "prompt"), 0)
    for name, tensor in manifest.kept().items():
        sizes["ring" if name == SAMPLE else kinds[name.partition("@")[0]]] += tensor.size_bytes
    sizes["prompt"] = sum(state.size_bytes for state in manifest.states if state.kind == "prompt")
    return sizes


def summary_lines(plan: Plan) -> Iterator[str]:
    """Engines, tensors, states, schedule, versions, and what the precision costs. Raises PlanError for a bad report."""
    manifest, report = plan.manifest, report_summary(plan)
    stream, window = manifest.stream, manifest.window
    yield f"{manifest.name}  {manifest.precision}, {manifest.backend}, lowering {manifest.lowering}  {plan.path}"
    yield f"identity   {plan.identity}"
    yield f"stream id  {manifest.stream_identity}"
    frames = list(dict.fromkeys([stream.first_frames, stream.later_frames]))
    lengths = " frames first, then ".join(map(str, frames))
    if stream.chunks is not None:
        length = f"a clip of {stream.chunks} chunks"
    elif window is None and all(state.kind == "prompt" for state in manifest.states):
        length = "clips without end, each a chunk by itself"
    else:
        length = "an endless stream"
    yield (
        f"stream     {length}, {stream.width}x{stream.height} at {stream.fps:g} frames/s, batch {stream.batch}; "
        f"a chunk is {lengths} frames, {stream.later_frames / stream.fps:g} s"
    )
    if window is not None:
        yield (
            f"window     {window.chunks} chunks, {window.sink} of them the sink; {window.chunk_frames} positions "
            f"a chunk, counted in the {'video' if window.positions == 'absolute' else 'window'}"
        )
    for name in manifest.pass_engines:
        scalars = [each.scalars for each in manifest.passes if each.engine == name]
        first = next(iter(scalars[0]), None)
        values = "" if first is None else f" at {first} " + " ".join(f"{each[first]:.4g}" for each in scalars)
        yield f"passes     {len(scalars)} of {name}{values}"
    yield f"text       {f'{manifest.text.length} tokens' if manifest.text else 'none'}"
    yield "state      " + ", ".join(f"{name} {size_text(size)}" for name, size in state_bytes(manifest).items())
    if manifest.target is not None:
        later = " and later" if manifest.target.later else ""
        yield f"target     {' '.join(manifest.target.architectures)}{later}"
    yield f"memory     at least {size_text(device_bytes(manifest))} of the device that runs it"
    yield "versions   " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    if report:
        yield "report"
    width = max(map(len, report), default=0)
    for label, value in report.items():
        yield f"  {label:<{width}}  {value}"
    yield "files"
    for name, file in manifest.files.items():
        yield f"  {name:<24}{size_text(file.size_bytes):>10}  {file.sha256[:16]}"
    for name, engine in manifest.engines.items():
        yield from _engine_lines(name, engine)


def _engine_lines(name: str, engine: EngineSpec) -> Iterator[str]:
    yield f"{name}  ({engine.file})"
    tensors = [("in ", tensor, tensor.source) for tensor in engine.inputs]
    for arrow, tensor, place in [*tensors, *(("out", tensor, tensor.target) for tensor in engine.outputs)]:
        shape = "x".join(str(side) for side in tensor.shape)
        yield f"  {arrow} {tensor.name:<24}{tensor.dtype:<8} {shape:<16} {place}"


def size_text(size_bytes: int) -> str:
    """With three digits, in B, kB, MB or GB of powers of 1000."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
