"""TensorRT-RTX takes the typed half graphs as they are: strongly typed, and built ahead of time without a GPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from videossm.calib.half import to_half
from videossm.export.engines import engine_specs
from videossm.export.trace import trace
from videossm.models.videossm.model import random_model
from videossm.models.videossm.presets import test as small_preset
from videossm.runtime import Plan

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs pip install 'videossm[rtx]'")

CAPABILITIES = ("SM89", "SM120")
TYPES = {"fp16": "HALF", "bf16": "BF16"}


@pytest.fixture(scope="module")
def standard_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory engine in standard operators: TensorRT-RTX has none for the scan."""
    folder = tmp_path_factory.mktemp("memory")
    (spec,) = (spec for spec in engine_specs(random_model(small_preset(), seed=2)) if spec.name == "memory")
    trace(spec, folder, "standard", 23)
    return folder / "memory.onnx"


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("engine", ["text_encoder", "step", "memory", "decoder"])
def test_builds(test_plan: Plan, standard_memory: Path, engine: str, precision: str) -> None:
    file = standard_memory if engine == "memory" else test_plan.path / f"{engine}.onnx"
    model = to_half(onnx.load(file), engine, precision)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    ends = [network.get_input(i) for i in range(network.num_inputs)]
    ends += [network.get_output(i) for i in range(network.num_outputs)]
    halves = {tensor.name for tensor in ends if tensor.dtype == getattr(trt.DataType, TYPES[precision])}
    assert halves == {tensor.name for tensor in ends if is_half(tensor.name)}
    for capability in CAPABILITIES:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        assert builder.build_serialized_network(network, config) is not None, capability


def is_half(name: str) -> bool:
    return name.endswith((".key", ".value")) or name.startswith("cache")
