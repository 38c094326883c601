"""What keeps TensorRT from a build: said before it, and the builder itself says the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from videossm.runtime.backends.tensorrt import preflight
from videossm.runtime.backends.tensorrt.module import Log
from videossm.runtime.backends.tensorrt.network import parse_network
from videossm.runtime.backends.tensorrt.preflight import (
    check_build,
    check_graphs,
    check_room,
    portable_architectures,
    rtx_architectures,
)
from videossm.runtime.driver import Driver, Gpu
from videossm.runtime.errors import Problem
from videossm.runtime.machine import BACKENDS, Machine, Package

trt: Any = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install videossm[rtx]"
)

ADA = Gpu(0, "NVIDIA RTX 4090", "sm_89", 24_000_000_000, 20_000_000_000)
PACKAGES = {name: Package("1.0") for name in BACKENDS}
CPU = Machine("3.12", "Linux", 8, None, 10_000_000_000, PACKAGES, driver=Driver(problem="no NVIDIA driver"))
GPU = dataclasses.replace(CPU, driver=Driver((13, 0), None, (ADA,)))


def lines(backend="tensorrt-rtx", precision="fp16", architectures=("sm_89",), lowering="standard", machine=CPU):
    return [str(problem) for problem in check_build(backend, precision, architectures, lowering, machine)]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_nothing_stands_in_the_way(precision):
    assert lines(precision=precision, architectures=("sm_89", "sm_120")) == []
    assert lines(precision=precision, architectures=()) == []
    assert lines("tensorrt", precision, (), machine=GPU) == []
    assert lines("tensorrt", precision, (), "plugin", machine=GPU) == []


def test_fp8_before_ada():
    first, second = lines(precision="fp8", architectures=("sm_80", "sm_89", "sm_86"))
    assert first.startswith("precision: got fp8 on sm_80, expected sm_89 or later for it; choose --precision int8")
    assert second.startswith("precision: got fp8 on sm_86, ")
    ampere = dataclasses.replace(GPU, driver=Driver(gpus=(dataclasses.replace(ADA, architecture="sm_86"),)))
    assert lines("tensorrt", "fp8", (), machine=ampere) == [second]


def test_hopper_on_rtx():
    (line,) = lines(architectures=("sm_90",))
    assert line == (
        "--gpu-arch: got sm_90 for tensorrt-rtx, expected one of sm_80, sm_86, sm_89, sm_120, sm_121; choose one; "
        "on a machine with sm_90 export with --backend tensorrt, or onnxruntime for CUDA"
    )


@pytest.mark.parametrize("architecture", ["89", "sm_8a", "ampere", "sm_"])
def test_no_architecture(architecture, monkeypatch):
    (line,) = lines(architectures=(architecture,))
    assert line.startswith(f"--gpu-arch: got {architecture} for tensorrt-rtx, expected one of sm_80, ")
    monkeypatch.setattr(preflight, "find_tensorrt", lambda backend: Problem("backend", "none", "it", "install it"))
    (line,) = lines(architectures=(architecture, "sm_89"))
    assert line.startswith(f"--gpu-arch: got {architecture} for tensorrt-rtx, expected one as sm_89;")


@pytest.mark.parametrize(
    ("backend", "lowering", "expected"),
    [
        ("tensorrt-rtx", "plugin", "plugin for tensorrt-rtx, which takes no plugins, expected standard;"),
        ("tensorrt-rtx", "contrib", "contrib for tensorrt-rtx, whose parser lacks LinearAttention, expected standard;"),
        (
            "tensorrt",
            "contrib",
            "contrib for tensorrt, whose parser lacks LinearAttention, expected standard;",
        ),
    ],
)
def test_lowering(backend, lowering, expected):
    (line,) = lines(backend, architectures=(), lowering=lowering, machine=GPU)
    assert line == f"lowering: got {expected} export with --lowering standard"


def test_tensorrt_builds_for_the_gpu_that_is_there():
    first, second = lines("tensorrt", architectures=("sm_89",))
    assert (
        first
        == "--gpu-arch: got sm_89 for tensorrt, expected none, as it builds for the GPU that it finds; leave it out"
    )
    assert second == (
        "backend: got tensorrt on a machine without a GPU (no NVIDIA driver), expected the GPU to build for; "
        "build there, or choose --backend tensorrt-rtx"
    )


def test_all_problems_at_once():
    missing = Package(problem=Problem("backend tensorrt-rtx", "none installed", "it", "install it"))
    machine = dataclasses.replace(CPU, packages={**PACKAGES, "tensorrt-rtx": missing})
    found = lines(precision="fp8", architectures=("sm_86", "sm_90"), lowering="contrib", machine=machine)
    starts = ["backend tensorrt-rtx", "lowering", "precision", "--gpu-arch"]
    assert [line.partition(":")[0] for line in found] == starts


def matmul(folder: Path, precision: str) -> Path:
    """A matrix product whose inputs are rounded to `precision`; fp32 between and around, as plans have it."""
    types = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
    weight = numpy_helper.from_array(np.full((64, 64), 0.5, np.float32), "weight")
    nodes, constants = [], [weight]
    for name in ("x", "weight"):
        if precision in types:
            nodes.append(helper.make_node("Cast", [name], [f"{name}_low"], to=types[precision]))
        elif precision == "fp32":
            nodes.append(helper.make_node("Identity", [name], [f"{name}_low"]))
        else:
            nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_quantized"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_quantized", "scale", "zero"], [f"{name}_low"]))
    nodes.append(helper.make_node("MatMul", ["x_low", "weight_low"], ["product"]))
    nodes.append(helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT))
    constants.append(numpy_helper.from_array(np.array(0.01, np.float32), "scale"))
    element = TensorProto.INT8 if precision == "int8" else TensorProto.FLOAT8E4M3FN
    constants.append(helper.make_tensor("zero", element, [], [0]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [32, 64]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "matmul", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model)
    file = folder / f"{precision}.onnx"
    onnx.save(model, file)
    return file


def builds(file: Path, architecture: str) -> bool:
    log = Log(trt)
    builder = trt.Builder(log.logger)
    network, refused = parse_network(trt, builder, log, file)
    assert not refused
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, architecture.replace("_", "").upper()), 0)
    return builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize(
    ("precision", "architecture"),
    [
        *((precision, "sm_75") for precision in ("fp32", "bf16", "fp8")),  # others build, but for the plan's fp32 parts
        *((precision, "sm_86") for precision in ("fp32", "fp16", "bf16", "int8", "fp8")),
        *((precision, "sm_89") for precision in ("fp32", "fp16", "bf16", "int8", "fp8")),
    ],
)
def test_the_builder_agrees(tmp_path, precision, architecture):
    assert builds(matmul(tmp_path, precision), architecture) == (
        lines(precision=precision, architectures=(architecture,)) == []
    )


def test_architectures():
    assert "sm_90" not in rtx_architectures() and set(portable_architectures("fp16")) <= set(rtx_architectures())
    assert portable_architectures("bf16") == ("sm_80", "sm_86", "sm_89", "sm_120")
    assert portable_architectures("fp8") == ("sm_89", "sm_120")


def test_graphs_that_the_parser_takes(tmp_path):
    files = {name: matmul(tmp_path, name) for name in ("fp16", "fp8")}
    assert check_graphs(trt, files) == []


def test_all_engines_that_the_parser_refuses(tmp_path):
    node = helper.make_node("LinearAttention", ["x"], ["y"], "scan", domain="com.microsoft")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=opsets, ir_version=10
    )
    files = {"step": matmul(tmp_path, "fp32"), "memory": tmp_path / "memory.onnx", "decoder": tmp_path / "none.onnx"}
    onnx.save(model, files["memory"])
    memory, decoder = map(str, check_graphs(trt, files))
    assert memory.startswith("memory (memory.onnx): got node scan (LinearAttention): ")
    assert memory.endswith(", expected what the parser takes; export it with --lowering standard, or report it")
    assert decoder.startswith("decoder (none.onnx): got node ")


def test_room(tmp_path):
    (tmp_path / "step.onnx").write_bytes(bytes(1000))
    (tmp_path / "step.onnx.data").write_bytes(bytes(99_000))
    (tmp_path / "decoder.onnx").write_bytes(bytes(10))
    files = {"step": tmp_path / "step.onnx", "decoder": tmp_path / "decoder.onnx"}
    assert check_room(files, tmp_path, CPU) == []
    enough = 400_230_000  # 0.4 GB, and 2.3 times the largest
    assert check_room(files, tmp_path, dataclasses.replace(CPU, memory_free_bytes=enough)) == []
    (problem,) = check_room(files, tmp_path, dataclasses.replace(CPU, memory_free_bytes=enough - 10))
    assert str(problem).startswith("memory: got 0.40 GB free, expected at least 0.40 GB;")


def test_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "step.onnx").write_bytes(bytes(1000))
    usage = type("Usage", (), {"free": 999})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage)
    (problem,) = check_room({"step": tmp_path / "step.onnx"}, tmp_path, CPU)
    assert str(problem).startswith(f"disk at {tmp_path}: got 0.00 GB free, expected at least 0.00 GB; make room")
