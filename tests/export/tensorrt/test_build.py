"""Whole plans of engines, made of plans of ONNX graphs, without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from videossm.calib.plans import add_to_plan
from videossm.export.tensorrt import build
from videossm.export.tensorrt.build import build_engines
from videossm.export.tensorrt.options import TensorRtOptions
from videossm.runtime import Plan
from videossm.runtime.driver import Driver, Gpu
from videossm.runtime.errors import BackendError, PlanError, PreflightError, UserError
from videossm.runtime.machine import Machine, Package

trt: Any = pytest.importorskip("tensorrt_rtx_bindings", reason="needs pip install 'videossm[rtx]'")

Progress = Callable[[int, str], Any]
RTX = "tensorrt-rtx"
BOTH = TensorRtOptions(gpu_arch=("sm_89", "sm_120"))
ADA = Gpu(0, "RTX 4090", "sm_89", 24 << 30, None)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    folder.mkdir()
    return folder


def one_byte(self: Any, name: str, spec: Any, graph: Path, engine: Path, has_plugins: bool, tf32: bool) -> bool:
    """An engine, built at once."""
    engine.write_bytes(b"x")
    return True


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of one byte: for what happens around them."""
    monkeypatch.setattr(build.EngineBuilder, "build", one_byte)


@pytest.fixture
def no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.EngineBuilder, "build", lambda *arguments: pytest.fail("nothing is built"))


@pytest.fixture
def full_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands TensorRT-RTX's module in for TensorRT's, which cannot be installed here, on a machine that has a GPU."""
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    package = Package(trt.__version__)
    machine = Machine("3.11", "Linux", 2, None, None, {"tensorrt": package, RTX: package}, driver=Driver(gpus=(ADA,)))
    monkeypatch.setattr(build, "probe_machine", lambda backends, measured=None: machine)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8", "int8"])
def test_every_engine_of_shapes_builds_for_two_architectures(
    shapes_plan: Plan, in_precision: Callable[[Plan, str], Plan], precision: str, out: Path, quiet: Progress
) -> None:
    source = in_precision(shapes_plan, precision)
    built = build_engines(source, {}, RTX, BOTH, out, quiet)
    plan = Plan.open(out)
    manifest, before = plan.manifest, source.manifest
    assert list(built) == list(manifest.engines)
    for name, spec in manifest.engines.items():
        size = (out / spec.file).stat().st_size
        assert spec.file == f"{name}.engine" and spec.weights is None
        assert size == built[name].size_bytes > 1e5 and built[name].seconds > 0
        assert (spec.inputs, spec.outputs) == (before.engines[name].inputs, before.engines[name].outputs)
    assert manifest.target is not None
    assert manifest.target.architectures == ("sm_89", "sm_120") and not manifest.target.later
    assert (manifest.backend, manifest.lowering, manifest.precision) == (RTX, "standard", precision)
    assert manifest.versions == {**before.versions, RTX: trt.__version__}
    changed = {"backend", "checksum", "engines", "files", "target", "versions"}
    assert manifest.model_dump(exclude=changed) == before.model_dump(exclude=changed)
    more = {"calibration.json"} if precision in ("fp8", "int8") else set()
    assert set(manifest.files) == {f"{name}.engine" for name in built} | {"tokenizer.json"} | more
    assert [path.name for path in out.parent.iterdir()] == ["new"], "no debris"


def test_a_portable_plan(
    shapes_plan: Plan, in_precision: Callable[[Plan, str], Plan], out: Path, quiet: Progress
) -> None:
    build_engines(in_precision(shapes_plan, "fp8"), {}, RTX, TensorRtOptions(), out, quiet)
    target = Plan.open(out).manifest.target
    assert target is not None
    assert target.architectures == ("sm_89", "sm_120") and target.later and not target.version_compatible


@pytest.mark.usefixtures("no_compiler")
def test_the_report_comes_along(
    shapes_plan: Plan, in_precision: Callable[[Plan, str], Plan], tmp_path: Path, out: Path, quiet: Progress
) -> None:
    source = tmp_path / "reported.plan"
    source.mkdir()
    for name, content in {"report.json": "{}", "report/report.html": "<html>"}.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(content)
    for file in in_precision(shapes_plan, "fp16").path.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    build_engines(add_to_plan(Plan.open(source)), {}, RTX, TensorRtOptions(gpu_arch=("sm_89",)), out, quiet)
    assert (out / "report" / "report.html").read_text() == "<html>"
    assert {"report.json", "report/report.html"} <= set(Plan.open(out).manifest.files)


@pytest.mark.usefixtures("no_build")
@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("fp8", {"gpu_arch": ("sm_86",)}, "precision: got fp8 on sm_86, expected sm_89 or later"),
        ("fp16", {"gpu_arch": ("sm_90",)}, "--gpu-arch: got sm_90 for tensorrt-rtx, expected one of sm_80"),
        ("fp16", {"gpu_arch": ("ada",)}, "--gpu-arch: got ada"),
    ],
)
def test_the_preflight_refuses_before_anything_is_built(
    shapes_plan: Plan,
    in_precision: Callable[[Plan, str], Plan],
    precision: str,
    options: dict[str, Any],
    message: str,
    out: Path,
    quiet: Progress,
) -> None:
    with pytest.raises(PreflightError) as error:
        build_engines(in_precision(shapes_plan, precision), {}, RTX, TensorRtOptions(**options), out, quiet)
    assert str(error.value).startswith(message)
    assert list(out.iterdir()) == []


@pytest.mark.usefixtures("no_build")
def test_all_that_the_parser_refuses_is_told_at_once(
    shapes_plan: Plan, tmp_path: Path, out: Path, quiet: Progress
) -> None:
    source = tmp_path / "foreign.plan"
    source.mkdir()
    for file in shapes_plan.path.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    for engine in ("text_encoder", "decoder"):
        model = onnx.load(source / f"{engine}.onnx")
        model.graph.node[0].op_type = "Unheard"
        onnx.save(model, source / f"{engine}.onnx")
    build.write_manifest(source, shapes_plan.values())
    with pytest.raises(PreflightError) as error:
        build_engines(Plan.open(source), {}, RTX, BOTH, out, quiet)
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and all("Unheard" in line for line in lines)
    assert lines[0].startswith("text_encoder") and lines[1].startswith("decoder")


@pytest.mark.usefixtures("no_build")
def test_plans_that_are_not_built(shapes_plan: Plan, out: Path, quiet: Progress) -> None:
    contrib = shapes_plan.manifest.model_copy(update={"lowering": "contrib"})
    with pytest.raises(UserError, match=r"lowering: got contrib for tensorrt-rtx.*; export with --lowering standard"):
        build_engines(Plan(shapes_plan.path, contrib), {}, RTX, BOTH, out, quiet)
    built = shapes_plan.manifest.model_copy(update={"backend": RTX})
    with pytest.raises(PlanError, match=r"plan: got .* for tensorrt-rtx, expected one of ONNX graphs; export it with"):
        build_engines(Plan(shapes_plan.path, built), {}, RTX, BOTH, out, quiet)


@pytest.mark.usefixtures("full_tensorrt")
def test_the_other_tensorrt_builds_for_the_gpu_that_is_there(
    shapes_plan: Plan, out: Path, tmp_path: Path, quiet: Progress, recwarn: pytest.WarningsRecorder
) -> None:
    """All but plugins and what needs a GPU while building: TensorRT's calls, made on TensorRT-RTX's module."""
    options = TensorRtOptions(
        workspace=1024,
        builder_level=1,
        timing_cache=tmp_path / "timings",
        profiling_verbosity="none",
        weight_streaming=True,
        hardware_compatible="same_compute_capability",
    )
    build_engines(shapes_plan, {}, "tensorrt", options, out, quiet)
    manifest = Plan.open(out).manifest
    assert manifest.target is not None
    assert manifest.target.architectures == ("sm_89",) and not manifest.target.later
    assert manifest.backend == "tensorrt" and manifest.versions["tensorrt"] == trt.__version__
    assert (tmp_path / "timings").stat().st_size > 0


def test_the_targets_of_other_options() -> None:
    machine = Machine("3.11", "Linux", 2, None, None)
    target = build._target(RTX, "fp16", TensorRtOptions(weight_streaming=True), machine)
    portable = ("sm_80", "sm_86", "sm_89", "sm_120")
    assert target == {"architectures": portable, "later": True, "weight_streaming": True}
    target = build._target(RTX, "fp16", BOTH, machine)
    assert target == {"architectures": ("sm_89", "sm_120"), "later": False, "weight_streaming": False}


@pytest.mark.usefixtures("full_tensorrt")
def test_a_target_of_other_gpus_and_versions() -> None:
    machine = build.probe_machine(["tensorrt"])
    options = TensorRtOptions(hardware_compatible="ampere_plus", version_compatible=True)
    expected = {"architectures": ("sm_80",), "later": True, "version_compatible": True, "weight_streaming": False}
    assert build._target("tensorrt", "fp16", options, machine) == expected


@pytest.mark.usefixtures("full_tensorrt", "no_compiler")
def test_stripped_engines_keep_their_graphs(shapes_plan: Plan, out: Path, quiet: Progress) -> None:
    """What lies beside them: the engines themselves TensorRT-RTX builds with a GPU alone."""
    build_engines(shapes_plan, {}, "tensorrt", TensorRtOptions(strip_weights=True), out, quiet)
    manifest = Plan.open(out).manifest
    assert {name: spec.weights for name, spec in manifest.engines.items()} == {
        name: f"{name}.onnx" for name in manifest.engines
    }
    assert (out / "step.onnx").read_bytes() == (shapes_plan.path / "step.onnx").read_bytes()


@pytest.mark.usefixtures("full_tensorrt")
def test_without_a_gpu_a_refittable_build_ends_in_one_line(shapes_plan: Plan, out: Path, quiet: Progress) -> None:
    """What the check of options foresees: TensorRT-RTX starts CUDA while it compiles such an engine."""
    if probe_gpu():
        pytest.skip("has a GPU")
    with pytest.raises(BackendError, match=r"^text_encoder: cannot be built: .*CUDA_SUCCESS.*"):
        build_engines(shapes_plan, {}, RTX, TensorRtOptions(strip_weights=True), out, quiet)


@pytest.mark.gpu
def test_stripped_engines_are_smaller(shapes_plan: Plan, tmp_path: Path, quiet: Progress) -> None:
    if not probe_gpu():
        pytest.skip("no GPU")
    sizes = []
    for strip in (False, True):
        folder = tmp_path / str(strip)
        folder.mkdir()
        built = build_engines(
            shapes_plan, {}, RTX, TensorRtOptions(gpu_arch=("sm_89",), strip_weights=strip), folder, quiet
        )
        sizes.append(built["step"].size_bytes)
    assert sizes[1] < sizes[0] / 2


def probe_gpu() -> bool:
    from videossm.runtime.driver import probe_driver

    return bool(probe_driver().gpus)
