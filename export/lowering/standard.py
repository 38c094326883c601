"""Scans to standard operators alone, for any ONNX runtime and for TensorRT-RTX, which loads no plugins.

    before  output, last = videossm::GatedDeltaScan<scale, normalize_key, normalize_query>(
                query, key, value, decay, beta, state)
            y, last = videossm::SelectiveScan<delta_softplus>(u, delta, A, B, C, state, D, z, delta_bias)
    after   the chunk-parallel implementation of `videossm.models.scans`, traced for the node's static shapes

There is one definition of the maths: the PyTorch one. A trace is made once for all nodes that agree in kind,
attributes, input types and outputs read; what only an unread output needs is not part of it. New names start with the
name of the node's last output and a dot.

Constraints: static shapes; the trace is in the model's own opset version, which torch.onnx.export must know.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor
from torch.nn import functional as F
from torch.onnx import OnnxExporterError

from videossm.export.lowering.batched_heads import batch_heads
from videossm.export.lowering.graph import LoweringError, ScanNode, TensorType, opset_version, replace_scans, set_opset
from videossm.export.schemas import DOMAIN, GATED_DELTA_SCAN, NORM_MIN, SELECTIVE_SCAN
from videossm.export.trace import quiet
from videossm.models.scans.gated_delta import gated_delta_chunked
from videossm.models.scans.selective_scan import selective_scan_parallel

# Of the values of a scan, in fp32, that are at work at once. The memory of a 1.3B model, whose values are 863 MB, takes
# three spans. What a span needs of scratch memory is some eight times its values.
SPAN_BYTES = 300 << 20
SPAN_UNIT = 64  # tokens: whole blocks of every size


def _gated_delta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    normalize_key: int,
    normalize_query: int,
) -> tuple[Tensor, Tensor]:
    """Span by span: within one, all that no state has a part in is computed for all its tokens at once."""
    tokens, spans = value.shape[1], -(-4 * value.numel() // SPAN_BYTES)
    size = -(-tokens // (spans * SPAN_UNIT)) * SPAN_UNIT
    outputs = []
    for start in range(0, tokens, size):
        whole = (query, key, value, decay, beta)
        q, k, v, g, b = (x if size >= tokens else x[:, start : start + size] for x in whole)
        k = _normalized(k) if normalize_key else k
        q = _normalized(q) if normalize_query else q
        output, state = gated_delta_chunked(q, k, v, g, b, state, scale)
        outputs.append(output)
    return (torch.cat(outputs, 1) if outputs[1:] else outputs[0]), state


def _normalized(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, fp32, as one node. A root mean square is |x| / sqrt(d)."""
    size = x.shape[-1]
    return F.rms_norm(x.float(), (size,), torch.full((size,), size**-0.5), NORM_MIN**2 / size)


IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    GATED_DELTA_SCAN: _gated_delta,
    SELECTIVE_SCAN: selective_scan_parallel,
}
_TORCH_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}


def lower_standard(model: ModelProto) -> ModelProto:
    """Replaces every scan in `model` itself, and returns it. Raises LoweringError naming a node that cannot be."""
    batch_heads(model)
    opset = opset_version(model)

    def replacement(scan: ScanNode) -> list[NodeProto]:
        return _inlined(model, scan, _traced(scan, opset))

    replace_scans(model, IMPLEMENTATIONS, replacement)
    set_opset(model, DOMAIN, 0)
    return model


def _traced(scan: ScanNode, opset: int) -> ModelProto:
    attributes = tuple(scan.attributes().items())
    try:
        traced = _trace(scan.node.op_type, attributes, scan.inputs, scan.wanted, opset)
    except OnnxExporterError as error:
        cause = str(error.__cause__ or error).partition("\n")[0]
        shapes = [x and x.shape for x in scan.inputs]
        raise LoweringError(
            f"{scan.where}: got inputs {shapes}, expected shapes as in its schema ({cause}); mend them"
        ) from error
    if (written := opset_version(traced)) != opset:
        raise LoweringError(
            f"{scan.where}: got a model in opset {opset}, expected one that torch.onnx.export can write (this was "
            f"written in {written}); export in a lower opset"
        )
    return traced


@functools.lru_cache(maxsize=16)
def _trace(
    kind: str,
    attributes: tuple[tuple[str, Any], ...],
    inputs: tuple[TensorType | None, ...],
    wanted: tuple[bool, ...],
    opset: int,
) -> ModelProto:
    """A graph whose inputs are those of the scan that are not left out, and whose outputs are those wanted."""
    names = list(inspect.signature(IMPLEMENTATIONS[kind]).parameters)[: len(inputs)]
    given = [name for name, value in zip(names, inputs, strict=True) if value is not None]
    examples = tuple(torch.empty(x.shape, dtype=_TORCH_TYPES[x.element]) for x in inputs if x is not None)

    class Traced(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> list[Tensor]:
            outputs = IMPLEMENTATIONS[kind](**dict(zip(given, tensors, strict=True)), **dict(attributes))
            return [output for output, is_wanted in zip(outputs, wanted, strict=True) if is_wanted]

    with quiet():
        program = torch.onnx.export(Traced().eval(), examples, dynamo=True, opset_version=opset, verbose=False)
    assert program is not None, "torch.onnx.export with dynamo returns a program"
    return program.model_proto


def _inlined(model: ModelProto, scan: ScanNode, traced: ModelProto) -> list[NodeProto]:
    """Nodes of the trace under the model's names. Initializers and types of values go to the model."""
    node = scan.node
    outputs = [name for name, is_wanted in zip(node.output, scan.wanted, strict=True) if is_wanted]
    names = {"": ""}
    names.update(zip((value.name for value in traced.graph.input), filter(None, node.input), strict=True))
    names.update(zip((value.name for value in traced.graph.output), outputs, strict=True))

    def renamed(name: str) -> str:
        return names.setdefault(name, scan.prefix + name)

    for tensor in traced.graph.initializer:
        model.graph.initializer.add().CopyFrom(tensor)
        model.graph.initializer[-1].name = renamed(tensor.name)
    for value in traced.graph.value_info:
        added = model.graph.value_info.add()
        added.name = renamed(value.name)
        added.type.CopyFrom(value.type)
    nodes = []
    for source in traced.graph.node:
        copy = NodeProto()
        copy.CopyFrom(source)
        copy.name = scan.prefix + source.name
        copy.input[:] = [renamed(name) for name in source.input]
        copy.output[:] = [renamed(name) for name in source.output]
        del copy.metadata_props[:]  # stack traces of the trace
        nodes.append(copy)
    return nodes
