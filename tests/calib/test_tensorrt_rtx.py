"""Quantised graphs are parsed and built by TensorRT-RTX, ahead of time, for GPUs that this machine need not have.

No plan is run: that takes a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from onnx import ModelProto

from videossm.calib.observers import EightBits
from videossm.export.tensorrt.zero_points import remove_zero_points

trt: Any = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install videossm[rtx]"
)


def built(model: ModelProto, architecture: str) -> int:
    """Size in bytes of the strongly typed engine that TensorRT-RTX makes of a graph."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            # Without it, fp32 attention and heads of other sizes than its kernels have fail to build.
            layer.__class__ = trt.IAttentionOutputLayer
            layer.attention.decomposable = True
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, architecture), 0)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, "parsed, but not built"
    return int(engine.nbytes)


@pytest.mark.parametrize("architecture", ["SM89", "SM120"])
@pytest.mark.parametrize("attention", [False, True], ids=["linears", "linears and attention"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_builds(quantized: Callable[..., ModelProto], precision: EightBits, attention: bool, architecture: str) -> None:
    """As videossm-export gives it to TensorRT: without zero points."""
    model = quantized("step", precision, attention)
    remove_zero_points(model)
    assert built(model, architecture) > 0
