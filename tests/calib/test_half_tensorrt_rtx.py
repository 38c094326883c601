"""TensorRT-RTX takes the typed half graphs as they are: strongly typed, and built ahead of time without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from videossm.calib.half import to_half
from videossm.runtime import Plan
from videossm.runtime.manifest import Manifest, state_read

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs pip install 'videossm[rtx]'")

CAPABILITIES = ("SM89", "SM120")
TYPES = {"fp16": "HALF", "bf16": "BF16"}


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("engine", ["text_encoder", "turn", "step", "memory", "decoder_first", "decoder"])
def test_builds(small_plan_in: Callable[[str], Plan], engine: str, precision: str) -> None:
    """In standard operators: TensorRT-RTX has none for the scan."""
    plan = small_plan_in("standard")
    model = to_half(onnx.load(plan.path / f"{engine}.onnx"), engine, plan.manifest, precision)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    ends = [network.get_input(i) for i in range(network.num_inputs)]
    ends += [network.get_output(i) for i in range(network.num_outputs)]
    halves = {tensor.name for tensor in ends if tensor.dtype == getattr(trt.DataType, TYPES[precision])}
    assert halves == half_tensors(plan.manifest, engine)
    for capability in CAPABILITIES:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        assert builder.build_serialized_network(network, config) is not None, capability


def half_tensors(manifest: Manifest, engine: str) -> set[str]:
    """Those that are states in half."""
    spec = manifest.engines[engine]
    ends = [(tensor.name, tensor.source) for tensor in spec.inputs]
    ends += [(tensor.name, tensor.target) for tensor in spec.outputs]
    states = {name: state_read(end) for name, end in ends}
    return {name for name, state in states.items() if state is not None and manifest.state[state].half}
