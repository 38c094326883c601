"""What keeps a machine from running a plan: each problem, and all of them at once."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from videossm.runtime import Rollout
from videossm.runtime.backends.onnxruntime import OnnxRuntimeBackend
from videossm.runtime.driver import Driver, Gpu
from videossm.runtime.errors import BackendError, PreflightError, Problem
from videossm.runtime.machine import CUDA_BINDINGS, Machine, Package
from videossm.runtime.manifest import Target
from videossm.runtime.preflight import check_run, device_bytes, remarks, require_run
from videossm.runtime.processor import Processor
from videossm.runtime.program import buffer_bytes

ADA = Gpu(0, "NVIDIA RTX 4090", "sm_89", 24_000_000_000, 20_000_000_000)
NO_GPU = Driver(problem="no NVIDIA driver")
MACHINE = Machine(
    python="3.11.7",
    system="Linux x86_64",
    cpu_threads=8,
    memory_bytes=64_000_000_000,
    memory_free_bytes=60_000_000_000,
    packages={
        "onnxruntime": Package("1.31.1"),
        "tensorrt": Package("11.1.0.106"),
        "tensorrt-rtx": Package("1.7.1.116"),
        CUDA_BINDINGS: Package("13.4.4"),
    },
    providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    driver=Driver((13, 0), "580.65.06", (ADA,)),
)


def machine(**changes):
    return dataclasses.replace(MACHINE, **changes)


def with_gpu(**changes):
    return machine(driver=dataclasses.replace(MACHINE.driver, gpus=(dataclasses.replace(ADA, **changes),)))


def without(package):
    problem = Problem(f"backend {package}", "none installed", "it", "install it")
    return machine(packages={**MACHINE.packages, package: Package(problem=problem)})


@pytest.fixture
def plan_for(tiny_plan):
    """`plan_for(backend, ...)`: the tiny plan as if it had been built for it; `versions` by backend."""

    def make(backend, architectures=("sm_89",), versions=None, **changes):
        target = changes.pop("target", Target(architectures=architectures))
        here = {name: MACHINE.packages[name].version for name in ("tensorrt", "tensorrt-rtx")}
        values = {"backend": backend, "target": target, "versions": versions or here, **changes}
        return dataclasses.replace(tiny_plan, manifest=tiny_plan.manifest.model_copy(update=values))

    return make


def lines(*arguments):
    return [str(problem) for problem in check_run(*arguments)]


@pytest.mark.parametrize("device", [None, "cuda:0", "cuda"])
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_of_engines_that_fits(plan_for, backend, device):
    assert lines(plan_for(backend), MACHINE, device) == []


@pytest.mark.parametrize("device", [None, "cpu", "cuda:0"])
def test_a_plan_of_graphs_that_fits(tiny_plan, device):
    assert lines(tiny_plan, MACHINE, device) == []


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_engines_without_a_gpu_are_one_line_that_names_the_cpu_plan(plan_for, backend):
    (line,) = lines(plan_for(backend, ("sm_120",)), dataclasses.replace(without(backend), driver=NO_GPU))
    assert line == (
        f"device: got a plan for {backend} on a machine without a GPU (no NVIDIA driver), expected a GPU; "
        "run it where there is one; for the CPU make a plan by videossm-export ... --backend onnxruntime"
    )


def test_engines_on_a_cpu(plan_for):
    (line,) = lines(plan_for("tensorrt"), MACHINE, "cpu")
    assert line.startswith("device: got cpu for a plan for tensorrt, expected cuda:N; leave --device out")


def test_graphs_on_cuda_without_a_gpu(tiny_plan):
    (line,) = lines(tiny_plan, machine(driver=NO_GPU), "cuda:1")
    assert line == (
        "device: got cuda:1 on a machine without a GPU (no NVIDIA driver), expected a GPU; use --device cpu"
    )


def test_no_such_gpu(plan_for):
    (line,) = lines(plan_for("tensorrt"), MACHINE, "cuda:2")
    assert line == "device: got cuda:2, expected one of cuda:0 (NVIDIA RTX 4090); change --device"


def test_no_device(tiny_plan):
    with pytest.raises(BackendError, match="device: got gpu, expected cpu or cuda:N"):
        check_run(tiny_plan, MACHINE, "gpu")


@pytest.mark.parametrize(
    ("architecture", "target", "fits"),
    [
        ("sm_89", Target(architectures=("sm_86", "sm_89")), True),
        ("sm_90", Target(architectures=("sm_86", "sm_89")), False),
        ("sm_90", Target(architectures=("sm_80", "sm_86", "sm_89", "sm_120"), later=True), False),
        ("sm_121", Target(architectures=("sm_80", "sm_86", "sm_89", "sm_120"), later=True), True),
        ("sm_90", Target(architectures=("sm_80",), later=True), True),
        ("sm_75", Target(architectures=("sm_80",), later=True), False),
    ],
)
def test_architecture(plan_for, architecture, target, fits):
    found = lines(plan_for("tensorrt-rtx", target=target), with_gpu(architecture=architecture))
    assert bool(found) != fits
    if not fits:
        assert f"got {architecture} (NVIDIA RTX 4090), expected {target.architectures[0]}" in found[0]
        assert found[0].endswith(f"export it again --gpu-arch {architecture}")


def test_a_precision_that_the_gpu_lacks(plan_for):
    target = Target(architectures=("sm_80",), later=True)
    (line,) = lines(plan_for("tensorrt", target=target, precision="fp8"), with_gpu(architecture="sm_86"))
    assert line.startswith("precision: got fp8 on sm_86, expected sm_89 or later for it; choose --precision int8")


@pytest.mark.parametrize(
    ("backend", "built", "compatible", "expected"),
    [
        ("tensorrt-rtx", "1.7.1.100", False, "tensorrt-rtx: got version 1.7.1.116, expected 1.7.1.100, which built"),
        ("tensorrt", "11.1.0.9", False, "tensorrt: got version 11.1.0.106, expected 11.1.0.9, which built the plan;"),
        ("tensorrt", "11.1.0.9", True, None),
        ("tensorrt", "10.16.1.11", True, None),
        ("tensorrt", "11.2.0.1", True, "tensorrt: got version 11.1.0.106, expected 11.2.0.1 or later, which built"),
    ],
)
def test_version(plan_for, backend, built, compatible, expected):
    target = Target(architectures=("sm_89",), version_compatible=compatible)
    found = lines(plan_for(backend, target=target, versions={backend: built}), MACHINE)
    assert len(found) == (expected is not None) and all(line.startswith(expected) for line in found)


def test_a_driver_that_is_too_old(plan_for):
    (line,) = lines(plan_for("tensorrt"), machine(driver=Driver((12, 8), "570.86.10", (ADA,))))
    assert line == "driver: got 570.86.10, for CUDA 12.8, expected one for CUDA 13; update it"


def test_memory_of_the_device(plan_for):
    plan = plan_for("tensorrt")
    need = device_bytes(plan.manifest)
    assert lines(plan, with_gpu(free_bytes=need)) == [] == lines(plan, with_gpu(free_bytes=None))
    (line,) = lines(plan, with_gpu(free_bytes=need - 1))
    assert line.startswith("memory of cuda:0: got 0.00 GB free, expected at least 0.00 GB;")


def test_what_a_rollout_needs_at_least(tiny_plan):
    engines = tiny_plan.manifest.engines
    graphs = sum((tiny_plan.path / engine.file).stat().st_size for engine in engines.values())
    tensors = sum(tensor.size_bytes for tensor in (*engines["step"].inputs, *engines["decoder"].outputs))
    assert graphs + tensors < device_bytes(tiny_plan.manifest) < 3 * (graphs + tensors)


def test_memory_of_the_host(tiny_plan):
    (line,) = lines(tiny_plan, machine(memory_free_bytes=1000))
    assert line.startswith("memory: got 0.00 GB free, expected at least ")
    assert lines(tiny_plan, machine(memory_free_bytes=None)) == []


def test_bf16_on_a_cpu(tiny_plan):
    engines = tiny_plan.manifest.engines
    half = tuple(tensor.model_copy(update={"dtype": "bfloat16"}) for tensor in engines["decoder"].outputs)
    engines = {**engines, "decoder": engines["decoder"].model_copy(update={"outputs": half})}
    plan = dataclasses.replace(tiny_plan, manifest=tiny_plan.manifest.model_copy(update={"engines": engines}))
    (line,) = lines(plan, MACHINE)
    assert line.startswith("device: got cpu for a plan in bf16, expected cuda:N")
    assert lines(plan, MACHINE, "cuda:0") == []


@pytest.mark.parametrize(
    ("precision", "backend", "device", "told"),
    [
        ("int8", "onnxruntime", None, True),
        ("int8", "onnxruntime", "cpu", True),
        ("int8", "onnxruntime", "cuda:0", False),
        ("int8", "tensorrt", None, False),
        ("fp8", "onnxruntime", None, False),
    ],
)
def test_int8_on_a_cpu_is_remarked_on(plan_for, precision, backend, device, told):
    plan = plan_for(backend, precision=precision)
    zen3 = machine(processor=Processor("Zen 3", ("avx2",)))
    expected = ["int8: this processor has no VNNI: int8 products are exact, but gain less than with it"]
    assert remarks(plan, zen3, device) == (expected if told else [])


@pytest.mark.parametrize(("version", "fits"), [("1.23.2", False), ("1.24.0", True), ("1.31.1", True)])
def test_the_operator_of_the_lowering_contrib(plan_for, version, fits):
    here = machine(packages={"onnxruntime": Package(version)})
    problems = check_run(plan_for("onnxruntime", lowering="contrib"), here)
    line = (
        f"onnxruntime: got version {version}, expected 1.24 or later for a plan of lowering contrib; "
        "upgrade it, or export with --lowering standard"
    )
    assert [str(problem) for problem in problems] == ([] if fits else [line])


def test_the_lowering_native_is_for_a_cpu(plan_for):
    assert lines(plan_for("onnxruntime", lowering="native"), with_gpu(), "cuda:0") == [
        "device: got cuda:0 for a plan of lowering native, expected cpu, which its scans run on; "
        "leave --device out, or export with another --lowering"
    ]


def test_an_onnxruntime_without_gpus(tiny_plan):
    (line,) = lines(tiny_plan, machine(providers=("CPUExecutionProvider",)), "cuda:0")
    assert line.startswith("onnxruntime: got one with CPUExecutionProvider, expected one of CUDAExecutionProvider, ")
    assert "pip install 'videossm[gpu]'" in line


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_tokenizer_whose_package_is_missing(tiny_plan, tmp_path, monkeypatch, device):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (line,) = lines(dataclasses.replace(tiny_plan, path=tmp_path), MACHINE, device)
    assert line.startswith("tokenizer.json: got a tokenizer that is not word-level")
    assert line.endswith("; pip install 'videossm[tokenizers]'")


def test_all_problems_at_once(plan_for):
    broken = dataclasses.replace(without(CUDA_BINDINGS), driver=Driver((12, 8), None, (ADA,)))
    found = lines(plan_for("tensorrt-rtx", ("sm_120",), {"tensorrt-rtx": "1.6"}), broken)
    assert [line.partition(":")[0] for line in found] == [f"backend {CUDA_BINDINGS}", "tensorrt-rtx", "device"]
    found = lines(plan_for("tensorrt"), dataclasses.replace(without("tensorrt"), driver=Driver((12, 8), None, (ADA,))))
    assert [line.partition(":")[0] for line in found] == ["backend tensorrt", "driver"]


def test_require_run_raises_all_of_them(tiny_plan, plan_for):
    require_run(tiny_plan, "cpu")
    require_run(tiny_plan, None)
    with pytest.raises(PreflightError) as raised:
        require_run(plan_for("tensorrt"), "cpu")
    assert [problem.what for problem in raised.value.problems] == ["device"]
    assert str(raised.value) == str(raised.value.problems[0])


def test_a_problem_is_one_line():
    assert (
        str(Problem("what", "a\n  long\treason", "none", "mend it"))
        == "what: got a long reason, expected none; mend it"
    )


def test_a_rollout_asks_for_its_memory_before_it_loads(tiny_plan, monkeypatch):
    monkeypatch.setattr("videossm.runtime.preflight.probe_memory", lambda: (2000, 1000))
    monkeypatch.setattr(OnnxRuntimeBackend, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(PreflightError, match=r"^memory: got 0\.00 GB free, expected at least 0\.00 GB; end other prog"):
        Rollout(tiny_plan, "red", threads=1)


def test_streamed_weights_and_reports_do_not_count(plan_for):
    plan = plan_for("tensorrt")
    streaming = plan_for("tensorrt", target=Target(architectures=("sm_89",), weight_streaming=True))
    files = sum(plan.manifest.files[engine.file].size_bytes for engine in plan.manifest.engines.values())
    assert device_bytes(plan.manifest) - files == device_bytes(streaming.manifest) == buffer_bytes(plan.manifest)
