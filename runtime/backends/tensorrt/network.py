"""An ONNX file as TensorRT's parser sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videossm.runtime.backends.tensorrt.module import Log


def parse_network(trt: Any, builder: Any, log: Log, file: Path) -> tuple[Any, list[str]]:
    """The strongly typed network of `file`, and what its parser refuses: a line for each node, none if it is whole."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse_from_file(str(file)):
        return network, []
    problems = [_refused(parser.get_error(index)) for index in range(parser.num_errors)]
    return network, problems or ["its parser gave no reason"]


def _refused(error: Any) -> str:
    where = f"node {error.node_name()} ({error.node_operator()})" if error.node_operator() else f"node {error.node()}"
    return f"{where}: {' '.join(error.desc().split())}"


def attentions_of(trt: Any, network: Any) -> list[Any]:
    """The attentions of a network, in its order."""
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.IAttentionOutputLayer  # the bindings give a layer of the base class
            found.append(layer.attention)
    return found
