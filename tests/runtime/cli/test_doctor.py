"""`videossm-doctor`: a table without a plan, the problems with one."""

from __future__ import annotations

import dataclasses
import json

import onnx
import pytest
from small_plan import rebuilt

from videossm.runtime.backends.tensorrt import preflight
from videossm.runtime.cli import doctor as module
from videossm.runtime.cli.doctor import abilities, doctor
from videossm.runtime.driver import Driver, Gpu
from videossm.runtime.machine import BACKENDS, CUDA_BINDINGS, Machine, Package, probe_machine
from videossm.runtime.processor import Processor

CPU = Processor("EPYC (made up)", ("avx2", "avx512_vnni"))
GPUS = (
    Gpu(0, "NVIDIA H200", "sm_90", 150_000_000_000, 149_000_000_000),
    Gpu(1, "NVIDIA RTX 4090", "sm_89", 24_000_000_000, None),
)


@pytest.fixture
def machine(monkeypatch):
    """A machine with two GPUs and all packages, as the doctor finds it."""
    packages = {name: Package("1.0") for name in (*BACKENDS, CUDA_BINDINGS)}
    driver = Driver((13, 0), "580.65.06", GPUS)
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    made = Machine("3.12.1", "Linux x86_64", 8, 64_000_000_000, 60_000_000_000, packages, providers, driver, CPU)
    monkeypatch.setattr(module, "probe_machine", lambda: made)
    return made


@pytest.fixture
def without_a_gpu(monkeypatch):
    found = dataclasses.replace(probe_machine(), driver=Driver(problem="no NVIDIA driver"))
    monkeypatch.setattr(module, "probe_machine", lambda: found)
    return found


def test_table(called, machine):
    code, out, err = called(doctor)
    assert (code, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["cpu"] == "EPYC (made up), 8 threads, avx2 avx512_vnni"
    assert rows["int8"] == "this processor has VNNI (avx512_vnni): int8 products are exact and run at full speed"
    assert rows["driver"] == "580.65.06, CUDA 13.0"
    assert rows["memory"] == "64.0 GB, 60.0 GB free"
    assert rows["cuda:0"] == "NVIDIA H200, sm_90, 150.0 GB, 149.0 GB free"
    assert rows["cuda:1"] == "NVIDIA RTX 4090, sm_89, 24.0 GB"
    assert rows["onnxruntime"] == "1.0  runs on cpu, cuda:0, cuda:1"
    assert rows["tensorrt"] == "1.0  builds for sm_90; runs on cuda:0, cuda:1"


def test_table_without_a_gpu(called, without_a_gpu):
    code, out, err = called(doctor)
    assert (code, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["driver"] == "no NVIDIA driver" and "cuda:0" not in rows
    assert rows["onnxruntime"].endswith("runs on cpu")


def test_abilities(machine):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install videossm[rtx]")
    able = abilities(machine)
    assert able["tensorrt-rtx"]["runs"] == ["cuda:1"]  # sm_90 is none of its architectures
    assert "sm_89" in able["tensorrt-rtx"]["builds"] and "sm_75" not in able["tensorrt-rtx"]["builds"]
    no_bindings = {**machine.packages, CUDA_BINDINGS: Package()}
    no_bindings[CUDA_BINDINGS] = dataclasses.replace(Package(), problem=object())
    able = abilities(dataclasses.replace(machine, packages=no_bindings))
    assert [able[name]["runs"] for name in BACKENDS] == [["cpu"], [], []]


def test_json(called, machine):
    code, out, err = called(doctor, "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["problems"] == [] and values["backends"]["tensorrt"]["runs"] == ["cuda:0", "cuda:1"]
    assert values["machine"]["driver"]["gpus"][0]["architecture"] == "sm_90"


def test_a_plan_that_runs(called, tiny_plan, without_a_gpu):
    for plan in (tiny_plan.path, tiny_plan.path / "step.onnx"):
        assert called(doctor, plan) == (0, f"{plan}: nothing found that keeps it from being run here\n", "")


def test_what_to_expect_of_a_plan_in_int8(called, plan_copy, machine):
    plan, expected = rebuilt(plan_copy, precision="int8").path, "int8: this processor has VNNI (avx512_vnni): "
    code, out, err = called(doctor, plan)
    first, second = out.splitlines()
    assert (code, err) == (0, "") and first.endswith("being run here") and second.startswith(expected)
    (remark,) = json.loads(called(doctor, plan, "--json")[1])["remarks"]
    assert remark == second
    for on_a_gpu in (("--device", "cuda:0"), ("--backend", "tensorrt-rtx")):
        assert json.loads(called(doctor, plan, *on_a_gpu, "--json")[1])["remarks"] == []


def test_a_plan_of_engines_without_a_gpu(refused, plan_copy, without_a_gpu):
    plan = rebuilt(plan_copy, backend="tensorrt-rtx", target={"architectures": ["sm_89"]}).path
    message = refused(doctor, plan)
    assert message.startswith("device: got a plan for tensorrt-rtx on a machine without a GPU (no NVIDIA driver), ")
    assert "--backend onnxruntime" in message


def test_every_problem_is_a_line(called, plan_copy, machine):
    plan = rebuilt(
        plan_copy, backend="tensorrt", target={"architectures": ["sm_86"]}, versions={"tensorrt": "0.9"}
    ).path
    code, out, err = called(doctor, plan, "--device", "cuda:1")
    assert (code, out) == (2, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["tensorrt", "device"]
    code, out, err = called(doctor, plan, "--device", "cuda:1", "--json")
    problems = json.loads(out)["problems"]
    assert code == 2 and len(problems) == len(err.splitlines()) == 2
    assert problems[1].keys() == {"what", "got", "expected", "do"} and problems[1]["expected"].startswith("sm_86")


def end_in_a_cast(decoder):
    """TensorRT takes uint8 from nothing but the last node; the tiny decoder has an Identity there."""
    model = onnx.load(decoder)
    last = next(node for node in model.graph.node if node.output[0] == "frames")
    cast = next(node for node in model.graph.node if node.output[0] == last.input[0])
    cast.output[0] = "frames"
    model.graph.node.remove(last)
    onnx.save(model, decoder)


def test_would_it_build(called, refused, plan_copy, without_a_gpu):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install videossm[rtx]")
    end_in_a_cast(plan_copy / "decoder.onnx")
    plan = rebuilt(plan_copy, lowering="standard").path
    arguments = (doctor, plan, "--backend", "tensorrt-rtx", "--gpu-arch", "sm_89", "--gpu-arch", "sm_120")
    assert called(*arguments) == (0, f"{plan}: nothing found that keeps it from being built here\n", "")
    rebuilt(plan_copy, lowering="standard", precision="fp8")
    assert called(*arguments)[0] == 0
    message = refused(doctor, plan, "--backend", "tensorrt-rtx", "--gpu-arch", "sm_86")
    assert message.startswith("precision: got fp8 on sm_86, expected sm_89 or later for it;")


def test_graphs_that_the_parser_refuses(called, refused, plan_copy, without_a_gpu):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install videossm[rtx]")
    for name in ("decoder.onnx", "memory.onnx"):
        graph = onnx.load(plan_copy / name)
        graph.graph.node[0].op_type = "NoSuchOperator"
        onnx.save(graph, plan_copy / name)
    plan = rebuilt(plan_copy, lowering="standard").path
    code, _, err = called(doctor, plan, "--backend", "tensorrt-rtx", "--gpu-arch", "sm_90")
    starts = ["--gpu-arch: got sm_90 for tensorrt-rtx", "memory (memory.onnx): got ", "decoder (decoder.onnx): got "]
    assert (
        code == 2
        and [line.startswith(start) for line, start in zip(err.splitlines(), starts, strict=True)] == [True] * 3
    )
    message = refused(doctor, rebuilt(plan_copy, lowering="contrib").path, "--backend", "tensorrt-rtx")
    assert message.startswith("lowering: got contrib for tensorrt-rtx")  # its graphs are not even parsed


def test_tensorrt_without_a_gpu_parses_nothing(called, plan_copy, without_a_gpu, monkeypatch):
    monkeypatch.setitem(without_a_gpu.packages, "tensorrt", Package("11.1.0.106"))
    monkeypatch.setattr(preflight, "find_tensorrt", lambda backend: object())
    monkeypatch.setattr(preflight, "check_graphs", lambda trt, files: pytest.fail("parsed"))
    code, _, err = called(doctor, rebuilt(plan_copy, lowering="standard").path, "--backend", "tensorrt")
    assert code == 2 and err.startswith("backend: got tensorrt on a machine without a GPU (no NVIDIA driver)")


def test_a_plan_of_engines_cannot_be_built(refused, plan_copy, machine):
    plan = rebuilt(plan_copy, backend="tensorrt", target={"architectures": ["sm_90"]}).path
    message = refused(doctor, plan, "--backend", "tensorrt-rtx")
    assert message.startswith("plan: got one for tensorrt, expected one of ONNX graphs")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--backend", "tensorrt"), "--backend: got it without a plan, expected PLAN"),
        (("--device", "cpu"), "--device: got it without a plan, expected PLAN"),
        (("--gpu-arch", "sm_89"), "--gpu-arch: got it without a plan, expected PLAN"),
        (("PLAN", "--gpu-arch", "sm_89"), "--gpu-arch: got it without --backend, expected --backend tensorrt-rtx"),
        (("PLAN", "--backend", "onnxruntime"), "--backend: got onnxruntime, expected one of tensorrt, tensorrt-rtx"),
        (("PLAN", "--backend", "tensorrt", "--device", "cpu"), "--device: got --backend as well, expected one of them"),
        (("PLAN", "--device", "gpu"), "device: got gpu, expected cpu or cuda:N"),
    ],
)
def test_options(refused, tiny_plan, machine, arguments, expected):
    words = [str(tiny_plan.path) if word == "PLAN" else word for word in arguments]
    assert refused(doctor, *words).startswith(expected)


def test_no_plan(refused, machine, tmp_path):
    assert refused(doctor, tmp_path / "none.plan").startswith("plan: got ")
