"""`videossm-export`: a checkpoint or a preset becomes a plan, and a plan of ONNX graphs one of TensorRT's engines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from videossm.calib.cli.options import calibration_options
from videossm.calib.options import REPORTS, CalibrationOptions, PrecisionOptions
from videossm.calib.packages import export_packages
from videossm.export.output import check_out, new_plan
from videossm.export.stages import (
    Result,
    VerificationError,
    build_engines,
    change_precision,
    trace_graphs,
    verify_graphs,
)
from videossm.export.target import PRECISIONS, ExportTarget
from videossm.export.tensorrt.options import BUILDING_GPUS, TensorRtOptions, tensorrt_options
from videossm.runtime import Plan
from videossm.runtime.backends.tensorrt.preflight import check_plan
from videossm.runtime.cli import Command, one_line, say
from videossm.runtime.errors import UserError, require_none
from videossm.runtime.machine import BACKENDS, probe_machine
from videossm.runtime.manifest import MANIFEST_FILE

if TYPE_CHECKING:  # torch takes seconds to import: --help and a wrong option do without
    from videossm.models.family import Deployment, Family

# The options that a plan may come with, whose graphs are there already: all others shape the graphs. Plugins need
# graphs with scans that are not lowered yet.
WITH_A_PLAN = {"checkpoint", "out", "force", "backend", "dry_run", "as_json"}
WITH_A_PLAN |= {field.name for field in fields(TensorRtOptions)} - {"plugins"}
GRAPHS = Path("onnx.plan")  # where the printed commands take the graphs from that are not kept


@click.command(cls=Command)
@click.argument("checkpoint", metavar="CHECKPOINT|PRESET|PLAN")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), default="engine.plan", show_default=True)
@click.option("--force", is_flag=True, help="Replace an older plan of that name.")
@click.option("--precision", default="fp32", show_default=True, help=f"One of {', '.join(PRECISIONS)}.")
@click.option("--backend", default="onnxruntime", show_default=True, help=f"One of {', '.join(BACKENDS)}.")
@click.option(
    "--lowering",
    help="What the scans become. onnxruntime: contrib, its own operator, the default from 1.24 on, standard operators, "
    "or native, this project's own, the fastest on a CPU, whose library VIDEOSSM_SCANS names; tensorrt: standard or, "
    "with --plugins, plugin; tensorrt-rtx: standard.",
)
@tensorrt_options
@click.option("--opset", default=23, show_default=True, help="Version of the standard ONNX operators, 23 to 25.")
@click.option(
    "--family",
    help="The model's family; package.module:name for one of your own. If not given, that of the checkpoint.",
)
@click.option("--height", type=int, help="Pixels; the checkpoint's if not given.")
@click.option("--width", type=int, help="Pixels; the checkpoint's if not given.")
@click.option("--batch", type=int, help="Streams that run together.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another option of the model's family, as window_frames=12. An unknown name lists them all.",
)
@click.option("--random-weights", is_flag=True, help="Take random weights, to measure a model without its own.")
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Roll PyTorch and the plan side by side afterwards."
)
@click.option("--verify-chunks", type=int, help="How many chunks; if not given, enough to fill the window and roll it.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the scales from this file, which videossm-calibrate wrote, instead of recording new ones.",
)
@calibration_options
@click.option(
    "--max-error",
    type=float,
    help="Return the costliest layers to fp32 until the relative error of a chunk's sample is at most this.",
)
@click.option(
    "--report",
    metavar="|".join(REPORTS),
    help="Measure what the precision costs: short measures some chunks and every pass of them, full also 200 chunks, "
    "what the videos show and what each layer costs. short if not given; fp32 has none.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check the options, the model and this machine, and say what would be made.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.pass_context
def export(
    context: click.Context,
    checkpoint: str,
    out: Path,
    force: bool,
    precision: str,
    backend: str,
    lowering: str | None,
    building: TensorRtOptions,
    opset: int,
    family: str | None,
    height: int | None,
    width: int | None,
    batch: int | None,
    settings: tuple[str, ...],
    random_weights: bool,
    verify: bool,
    verify_chunks: int | None,
    calibration: Path | None,
    calibrating: CalibrationOptions,
    max_error: float | None,
    report: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Exports CHECKPOINT (a .safetensors file) or PRESET to one plan that runs without PyTorch.

    With --backend tensorrt or tensorrt-rtx also a PLAN of ONNX graphs, which is built as it is.
    """
    if _is_plan(checkpoint):
        _build_plan(context, Path(checkpoint), out, force, backend, building, dry_run, as_json)
        return
    target = ExportTarget(precision, backend, lowering, building, opset)
    target.check()
    if verify_chunks is not None and verify_chunks < 1:
        raise UserError(f"--verify-chunks: got {verify_chunks}, expected 1 or more; change it, or pass --no-verify")
    wanted = PrecisionOptions(precision, calibration, calibrating, max_error, report)
    wanted.check()
    check_out(out, force, filter(None, [Path(checkpoint), calibration, calibrating.calibration_prompts]))
    sizes = {"height": height, "width": width, "batch": batch}
    options = _settings(settings, {name: size for name, size in sizes.items() if size is not None})
    done = Result(str(out), "", precision, backend, target.plan_lowering, None)
    with done.stage("export"), _input_errors():
        known, deployment = _load(checkpoint, family, options, random_weights)
    done.name, done.parameters = deployment.name, deployment.parameters
    if dry_run:
        line = f"would write {out}: {done.name}, {done.parameters / 1e6:.1f} M parameters, {backend}, {precision}"
        done.finish(as_json, f"{line}. It would {wanted.todo}" if wanted.todo else line)
        return
    try:
        with new_plan(out, force) as folder:
            graphs = folder.with_name("onnx") if target.builds else folder
            fp32 = graphs if precision == "fp32" else folder.with_name("fp32")
            canonical = folder.with_name("canonical")
            for place in (graphs, fp32, canonical):
                place.mkdir(exist_ok=True)
            with done.stage("export"), _input_errors():
                plan, scans = trace_graphs(deployment, known.name, target, fp32, canonical)
            if not target.builds:
                done.lowering = plan.manifest.lowering
            if verify:
                with done.stage("verify"):
                    verify_graphs(done, plan, deployment, verify_chunks, quiet=as_json)
            del deployment  # two plans are about to be held in memory
            if precision != "fp32":
                with done.stage("precision"):
                    plan = change_precision(done, wanted, plan, graphs)
            if target.builds:
                with done.stage("build"):
                    build_engines(done, plan, scans, target, folder, GRAPHS)
            done.size_bytes = _size_bytes(folder)
    except VerificationError as error:
        say(one_line(str(error)))
        context.exit(1)
    same = f"--backend onnxruntime --lowering standard -o {GRAPHS}"
    by_hand = f"by hand, once the same options with {same} have made the graphs:"
    done.finish(as_json, f"{out}: {done.size_bytes / 1e6:.1f} MB in {sum(done.seconds.values()):.0f} s", by_hand)


def _is_plan(name: str) -> bool:
    return os.path.isfile(os.path.join(name, MANIFEST_FILE))  # False, too, for a name that no file can have


def _build_plan(
    context: click.Context,
    path: Path,
    out: Path,
    force: bool,
    backend: str,
    building: TensorRtOptions,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Engines of a plan's ONNX graphs, in its precision."""
    from videossm.export.tensorrt.build import check_source

    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in WITH_A_PLAN and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UserError(
                f"{_said(context, parameter)}: got it with a plan, whose graphs are built as they are, expected a "
                "checkpoint or preset; leave it out"
            )
    plan = Plan.open(path)
    check_source(plan)
    manifest = plan.manifest
    target = ExportTarget(manifest.precision, backend, manifest.lowering, building)
    if not target.builds:
        raise UserError(f"--backend: got {backend} with a plan, expected tensorrt or tensorrt-rtx; choose one")
    target.check_backend()
    if out.resolve() == plan.path.resolve():
        raise UserError(f"-o: got {out}, whose graphs are built, expected another name; choose one")
    check_out(out, force, [plan.path])
    done = Result(str(out), manifest.name, manifest.precision, backend, target.plan_lowering, None)
    if dry_run:
        machine = probe_machine([backend], BUILDING_GPUS)
        require_none(check_plan(plan, backend, building.gpu_arch, machine, out.absolute().parent))
        done.finish(as_json, f"would write {out}: {manifest.name}, {backend}, {manifest.precision}")
        return
    with new_plan(out, force) as folder:
        with done.stage("build"):
            build_engines(done, plan, {}, target, folder, plan.path)
        done.size_bytes = _size_bytes(folder)
    done.finish(as_json, f"{out}: {done.size_bytes / 1e6:.1f} MB in {done.seconds['build']:.0f} s")


def _said(context: click.Context, parameter: click.Parameter) -> str:
    """The option as the user gave it: of --verify/--no-verify the one of the two."""
    off = parameter.secondary_opts and not context.params[parameter.name or ""]
    return (parameter.secondary_opts if off else parameter.opts)[0]


def _settings(given: Iterable[str], others: Mapping[str, int]) -> dict[str, int | float | str]:
    """Each NAME=VALUE, a number where it is one, and the options of a family that have names of their own."""
    settings: dict[str, int | float | str] = {**others}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise UserError(f"--set: got {entry!r}, expected NAME=VALUE, as window_frames=12; change it")
        name = name.replace("-", "_")
        if name in settings:
            raise UserError(f"--set: got {name} twice, expected it once; leave one out")
        settings[name] = _number(value)
    return settings


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _load(
    checkpoint: str, named: str | None, options: dict[str, Any], random_weights: bool
) -> tuple[Family, Deployment]:
    """The model that the user names, as a deployment. Raises ModelError."""
    # PyTorch's threads must not burn the cores while they wait: where others work too, verifying `shapes` took 20 to
    # 34 s in place of 4. It counts where nothing has imported torch yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from videossm.models.family import find_family

    here = os.getcwd()  # of --family: a module beside the user is found, as by `python -m`
    sys.path.insert(0, here)
    try:
        family = find_family(checkpoint, named)
        return family, family.load(checkpoint, options, random_weights)
    finally:
        sys.path.remove(here)


@contextmanager
def _input_errors() -> Iterator[None]:
    """Turns what is wrong with the model into a UserError; a package that is not there names the extra."""
    with export_packages("export"):
        from videossm.models.family import ModelError

        try:
            yield
        except ModelError as error:
            raise UserError(str(error)) from None
        except (MemoryError, RuntimeError) as error:  # PyTorch's own is a RuntimeError
            if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
                raise
            raise UserError("memory: got too little for a model of this size, expected more; make it smaller") from None


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    export()
