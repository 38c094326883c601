"""One engine at a time: cancelled, refused, misdescribed, or built, with every option on its config."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from videossm.export.tensorrt import engine
from videossm.export.tensorrt.engine import EngineBuilder
from videossm.export.tensorrt.options import TensorRtOptions
from videossm.runtime import Plan
from videossm.runtime.errors import BackendError
from videossm.runtime.manifest import EngineSpec

trt: Any = pytest.importorskip("tensorrt_rtx_bindings", reason="needs pip install 'videossm[rtx]'")
CAPTURED = "REQUIRE_USER_ALLOCATION"  # so that TensorRT-RTX can

Progress = Callable[[int, str], Any]


@pytest.fixture
def build(shapes_plan: Plan, tmp_path: Path, quiet: Progress) -> Callable[..., Path]:
    """`build("step", TensorRtOptions(..))`: that engine of `shapes`."""

    def make(
        name: str,
        options: TensorRtOptions | None = None,
        progress: Progress = quiet,
        plan: Plan = shapes_plan,
        **changes: Any,
    ) -> Path:
        spec = plan.manifest.engines[name].model_copy(update=changes)
        builder = EngineBuilder(trt, options or TensorRtOptions(), progress)
        builder.build(name, spec, plan.path / spec.file, tmp_path / f"{name}.engine")
        return tmp_path / f"{name}.engine"

    return make


def test_an_engine_and_its_bar(build: Callable[..., Path], bar: Any, showing_bar: Callable[[Any], Progress]) -> None:
    file = build("decoder", TensorRtOptions(gpu_arch=("sm_89", "sm_120")), showing_bar(bar))
    assert file.stat().st_size > 1e6
    assert (bar.names, bar.n) == (["decoder"], 100)


def test_ctrl_c_ends_the_build_and_leaves_no_file(
    build: Callable[..., Path], tmp_path: Path, bar: Any, showing_bar: Callable[[Any], Progress]
) -> None:
    """The interrupt is raised where a real one would be: in the main thread, while it waits."""
    threads = threading.active_count()

    def interrupted() -> None:
        raise KeyboardInterrupt

    bar._on_update = interrupted
    with pytest.raises(KeyboardInterrupt):
        build("step", progress=showing_bar(bar))
    assert bar.n < 100
    assert threading.active_count() == threads, "the builder has stopped"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_built_says_why(
    build: Callable[..., Path], shapes_plan: Plan, in_precision: Callable[[Plan, str], Plan], tmp_path: Path
) -> None:
    fp8 = in_precision(shapes_plan, "fp8")
    with pytest.raises(BackendError, match=r"^step: cannot be built: .*Cannot compile for target\(s\) sm86"):
        build("step", TensorRtOptions(gpu_arch=("sm_86",)), plan=fp8)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_builder_is_raised_here(build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(trt.Builder):  # type: ignore[misc]
        def build_serialized_network(self, network: Any, config: Any) -> Any:
            raise MemoryError("out of memory")

    monkeypatch.setattr(trt, "Builder", Exhausted)
    with pytest.raises(MemoryError, match=r"out of memory"):
        build("decoder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: {"inputs": spec.inputs[1:]}, r"^decoder: input latents: got .*, expected none"),
        (lambda spec: {"outputs": ()}, r"^decoder: output cache_next.0: got .*, expected none"),
        (
            lambda spec: {"inputs": (spec.inputs[0].model_copy(update={"shape": (7,)}), *spec.inputs[1:])},
            r"^decoder: input latents: got .*FLOAT.*\(1, .*, expected .*\(7,\)\), as the manifest says; export",
        ),
        (
            lambda spec: {"inputs": (spec.inputs[0].model_copy(update={"dtype": "bfloat16"}), *spec.inputs[1:])},
            r"^decoder: input latents: got .*FLOAT.*expected .*BF16",
        ),
    ],
    ids=["missing input", "missing outputs", "shape", "dtype"],
)
def test_tensors_that_are_not_the_manifests(
    build: Callable[..., Path], shapes_plan: Plan, change: Callable[[EngineSpec], dict[str, Any]], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        build("decoder", **change(shapes_plan.manifest.engines["decoder"]))


def test_a_graph_that_the_parser_refuses(build: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"^decoder: .*; export the graph again$"):
        build("decoder", file=str(tmp_path / "broken.onnx"))


def test_plugins_that_are_no_library(tmp_path: Path, quiet: Progress) -> None:
    (tmp_path / "plugins.so").write_bytes(b"no library")
    with pytest.raises(
        BackendError, match=r"^--plugins: .*plugins.so cannot be loaded: .*; build it with `make plugins`$"
    ):
        EngineBuilder(trt, TensorRtOptions(plugins=tmp_path / "plugins.so"), quiet)


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, (CAPTURED,)),
        ({"refit": True}, (CAPTURED, "REFIT")),
        ({"strip_weights": True}, (CAPTURED, "REFIT_IDENTICAL", "STRIP_PLAN")),
        ({"strip_weights": True, "refit": True}, (CAPTURED, "REFIT", "STRIP_PLAN")),
        ({"weight_streaming": True}, ("WEIGHT_STREAMING",)),
        ({"version_compatible": True}, (CAPTURED, "VERSION_COMPATIBLE")),
    ],
    ids=lambda value: "+".join(value) or "none",
)
def test_flags(given: dict[str, bool], flags: tuple[str, ...], quiet: Progress) -> None:
    config = EngineBuilder(trt, TensorRtOptions(**given), quiet)._config()
    assert config.flags == sum(1 << int(getattr(trt.BuilderFlag, flag)) for flag in flags), "no TF32, and these"


def test_only_an_engine_with_plugins_is_version_compatible_for_them(quiet: Progress) -> None:
    """Not those beside it, which could be slower for it."""
    builder = EngineBuilder(trt, TensorRtOptions(), quiet)
    compatible = 1 << int(trt.BuilderFlag.VERSION_COMPATIBLE)
    builder._options = TensorRtOptions(plugins=Path("libp.so"))
    assert not builder._config().flags & compatible
    assert builder._config(has_plugins=True).flags & compatible


def test_tf32(quiet: Progress) -> None:
    """In the passes of a lower precision, and nowhere else."""
    builder = EngineBuilder(trt, TensorRtOptions(), quiet)
    assert [builder._config(tf32=tf32).get_flag(trt.BuilderFlag.TF32) for tf32 in (False, True)] == [False, True]


def test_other_options(quiet: Progress) -> None:
    options = TensorRtOptions(
        gpu_arch=("sm_89", "sm_120"),
        workspace=64,
        builder_level=1,
        profiling_verbosity="detailed",
    )
    config = EngineBuilder(trt, options, quiet)._config()
    architectures = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert architectures == [trt.ComputeCapability.SM89, trt.ComputeCapability.SM120]
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert config.builder_optimization_level == 1
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


@pytest.mark.parametrize("dtype", engine.DTYPES)
def test_every_type_of_a_manifest_has_one_in_tensorrt(dtype: str) -> None:
    assert hasattr(trt.DataType, engine.DTYPES[dtype])
