"""`videossm-export`: a checkpoint or a preset becomes a plan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from videossm.calib.cli.options import CalibrationOptions, calibration_options
from videossm.export.output import check_out, new_plan
from videossm.export.precision import QUANTISED, PrecisionOptions, check_precision, make_precision
from videossm.runtime.cli import Command, print_json, progress
from videossm.runtime.errors import BackendError, UserError

if TYPE_CHECKING:  # torch takes seconds to import: --help and a wrong option do without
    from videossm.export.build import BuildOptions
    from videossm.export.source import Source
    from videossm.models.model import VideoModel

LOWERINGS = ("contrib", "standard")
LATER_RUNTIME = (1, 24)  # since when ONNX Runtime has LinearAttention, and Q/DQ of opset 23
BACKENDS = {  # the module of each, and the extra that installs it
    "onnxruntime": ("onnxruntime", "export"),
    "tensorrt": ("tensorrt", "trt"),
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
}
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8")
RUNNABLE = {"onnxruntime": PRECISIONS}  # what export can make today


class VerificationError(Exception):
    """The plan does not compute what the model does: a defect of the exporter, not of the input."""


@dataclass
class Report:
    """What `--json` prints."""

    plan: str
    name: str
    precision: str
    backend: str
    lowering: str
    parameters: int
    size_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    chunk_errors: list[float] = field(default_factory=list)  # relative, of the latents; empty without --verify
    pixel_errors: list[int] = field(default_factory=list)  # largest of each chunk, of 255
    tolerance: float | None = None  # of chunk_errors
    accuracy: dict[str, str | int | float] = field(default_factory=dict)  # the summary of report.json


@click.command(cls=Command)
@click.argument("checkpoint", metavar="CHECKPOINT|PRESET")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), default="engine.plan", show_default=True)
@click.option("--precision", default="fp32", show_default=True, help=f"One of {', '.join(PRECISIONS)}.")
@click.option("--backend", default="onnxruntime", show_default=True, help=f"One of {', '.join(BACKENDS)}.")
@click.option(
    "--lowering",
    help="Of the scans: contrib, the fastest and the default where ONNX Runtime has it (1.24), or standard operators.",
)
@click.option("--opset", default=23, show_default=True, help="Of standard ONNX; 23 to 25.")
@click.option("--height", type=int, help="Pixels; the checkpoint's if not given.")
@click.option("--width", type=int, help="Pixels; the checkpoint's if not given.")
@click.option("--batch", type=int, help="Streams that run together.")
@click.option("--chunk-frames", type=int, help="Latent frames made at a time.")
@click.option("--window-frames", type=int, help="Past latent frames that a chunk attends to, sink included.")
@click.option("--sink-frames", type=int, help="First latent frames of the video, which never leave the window.")
@click.option("--layers", type=int, help="With --random-weights: blocks of the transformer, to measure a part of it.")
@click.option("--random-weights", is_flag=True, help="Ignore the checkpoint's weights: to measure an engine without.")
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Roll PyTorch and the plan side by side afterwards."
)
@click.option("--verify-chunks", type=int, help="How many; enough to roll the window and read the memory if not given.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE", help="Of videossm-calibrate, not a new one."
)
@calibration_options
@click.option(
    "--max-error", type=float, help="Return the costliest layers to fp32 until the latents' relative error is this."
)
@click.option(
    "--report/--no-report", default=True, show_default=True, help="Measure what the precision costs, over 200 chunks."
)
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be made.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.pass_context
def export(
    context: click.Context,
    checkpoint: str,
    out: Path,
    precision: str,
    backend: str,
    lowering: str | None,
    opset: int,
    height: int | None,
    width: int | None,
    batch: int | None,
    chunk_frames: int | None,
    window_frames: int | None,
    sink_frames: int | None,
    layers: int | None,
    random_weights: bool,
    verify: bool,
    verify_chunks: int | None,
    calibration: Path | None,
    calibrating: CalibrationOptions,
    max_error: float | None,
    report: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Exports CHECKPOINT (a .safetensors file) or PRESET to one plan that runs without PyTorch."""
    lowering = lowering or _default_lowering()
    _check_target(precision, backend, lowering, opset)
    if layers is not None and not random_weights:
        raise UserError("--layers: got it with a checkpoint's weights, expected --random-weights beside it; add it")
    if verify_chunks is not None and verify_chunks < 1:
        raise UserError(f"--verify-chunks: got {verify_chunks}, expected 1 or more; change it, or pass --no-verify")
    wanted = PrecisionOptions(precision, calibration, calibrating, max_error, report)
    check_precision(wanted)
    check_out(out)
    with _input_errors():
        from videossm.export.build import BuildOptions
        from videossm.export.source import find_source

        started = time.perf_counter()
        source = find_source(checkpoint, random_weights)
        config = source.config.replace(
            **_given(height=height, width=width, batch=batch),
            window=_given(chunk_frames=chunk_frames, window_frames=window_frames, sink_frames=sink_frames),
            transformer=_given(layers=layers),
        )
        model = source.load(config)
    parameters = sum(p.numel() for p in model.parameters())
    done = Report(str(out), config.name, precision, backend, lowering, parameters)
    if dry_run:
        _finish(done, as_json, f"would write {out}: {config.name}, {parameters / 1e6:.1f} M parameters, {precision}")
        return
    try:
        with new_plan(out) as folder:
            fp32 = folder if precision == "fp32" else folder.with_name("fp32")
            fp32.mkdir(exist_ok=True)
            _build(done, model, source, BuildOptions(backend, lowering, opset), fp32)
            done.seconds["export"] = time.perf_counter() - started
            if verify:
                _verify(done, fp32, model, verify_chunks, quiet=as_json)
            if precision != "fp32":
                del model  # two plans are about to be held in memory
                started = time.perf_counter()
                done.accuracy = make_precision(wanted, fp32, folder)
                done.seconds["precision"] = time.perf_counter() - started
            done.size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except VerificationError as error:
        click.echo(str(error), err=True)
        context.exit(1)
    _finish(done, as_json, f"{out}: {done.size_bytes / 1e6:.1f} MB in {sum(done.seconds.values()):.0f} s")


@contextmanager
def _input_errors() -> Iterator[None]:
    """What is wrong with the user's model is the user's error; a package that is not there names the extra."""
    try:
        from videossm.models.checkpoint import CheckpointError
        from videossm.models.config import ConfigError
    except ModuleNotFoundError as error:
        raise UserError(f"export: got no {error.name}, expected it installed; pip install 'videossm[export]'") from None
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        raise UserError(str(error)) from None


def _default_lowering() -> str:
    """`contrib` needs the operator LinearAttention of the ONNX Runtime that will run the plan: most likely this one."""
    return "contrib" if _has_later_runtime() else "standard"


def _has_later_runtime() -> bool:
    from onnxruntime import __version__

    major, minor, *_ = __version__.split(".")
    return (int(major), int(minor)) >= LATER_RUNTIME


def _check_target(precision: str, backend: str, lowering: str, opset: int) -> None:
    """Raises UserError or BackendError for a target that export cannot make, before anything is loaded."""
    for option, got, known in (
        ("--precision", precision, PRECISIONS),
        ("--backend", backend, tuple(BACKENDS)),
        ("--lowering", lowering, LOWERINGS),
    ):
        if got not in known:
            raise UserError(f"{option}: got {got}, expected one of {', '.join(known)}; choose one")
    if backend not in RUNNABLE:
        module, extra = BACKENDS[backend]
        why = "which this version cannot build for"
        if find_spec(module) is None:
            why = f"which is not installed (pip install 'videossm[{extra}]')"
        raise BackendError(
            f"--backend: got {backend}, {why}, expected {', '.join(RUNNABLE)}; choose --backend onnxruntime"
        )
    if precision not in RUNNABLE[backend]:
        runnable = ", ".join(RUNNABLE[backend])
        raise UserError(f"--precision: got {precision}, which {backend} cannot run, expected {runnable}; choose it")
    if precision in QUANTISED and not _has_later_runtime():
        later = ".".join(map(str, LATER_RUNTIME))
        raise BackendError(
            f"--precision: got {precision} with an ONNX Runtime that cannot run it, expected {later} or later; "
            "upgrade onnxruntime, which needs Python 3.11, or choose fp32"
        )
    if opset not in range(23, 26):
        raise UserError(f"--opset: got {opset}, expected 23 to 25; choose one")


def _build(report: Report, model: VideoModel, source: Source, options: BuildOptions, folder: Path) -> None:
    from videossm.export.build import build_plan

    with progress(4 if model.config.transformer.memory else 3, "engine") as bar:

        def on_engine(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        build_plan(model, source.tokenizer, options, folder, on_engine)


def _verify(report: Report, folder: Path, model: VideoModel, chunks: int | None, quiet: bool) -> None:
    from videossm.export.verify import PIXEL_TOLERANCE, TOLERANCE, chunks_to_verify, verify
    from videossm.runtime import Plan

    started = time.perf_counter()
    plan = Plan.open(folder)
    report.tolerance = TOLERANCE
    for error in verify(plan, model, chunks or chunks_to_verify(plan)):
        report.chunk_errors.append(error.latent)
        report.pixel_errors.append(error.pixels)
        line = f"chunk {error.index}: relative error {error.latent:.1e}, pixels differ by {error.pixels}"
        if not error.small:
            raise VerificationError(
                f"verify: got {line}, expected at most {TOLERANCE:.0e} and {PIXEL_TOLERANCE}; "
                "nothing was written: report it, or pass --no-verify"
            )
        if not quiet:
            click.echo(line, err=True)
    report.seconds["verify"] = time.perf_counter() - started


def _finish(report: Report, as_json: bool, line: str) -> None:
    if as_json:
        print_json(vars(report))
    else:
        for label, value in report.accuracy.items():
            click.echo(f"{label:<22} {value}", err=True)
        click.echo(line, err=True)


def _given(**options: Any) -> dict[str, Any]:
    """Those that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


if __name__ == "__main__":
    export()
