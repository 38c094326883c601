"""Gated delta scans to ONNX Runtime's own operator, two to eight times as fast on a CPU as the standard lowering.

    before  output, last = videossm::GatedDeltaScan<scale, normalize_key, normalize_query>(
                query, key, value, decay, beta, state)
    after   packed, last = com.microsoft::LinearAttention<update_rule="gated_delta", q_num_heads, kv_num_heads, scale>(
                Reshape(query), Reshape(key), Reshape(value), state, decay, beta)
            output = Reshape(packed)

Heads are packed into the last dimension, [B, T, H * d]; decay and beta stay [B, T, H]. Inputs that are not fp32 are
cast to it and the output back: the operator takes gates in its activations' type only, and has no bf16 on a CPU.
What is to be normalised is, before it is packed, by RMSNormalization with the weight 1 / sqrt(d_k): one node, where a
norm, its lower bound and a division are three.
SelectiveScan has no such operator and is lowered as `videossm.export.lowering.standard` does it.

Constraints: static shapes; a scale that is not 0, which the operator takes for 1 / sqrt(d_k).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from videossm.export.lowering.batched_heads import batch_heads
from videossm.export.lowering.graph import LoweringError, ScanNode, TensorType, replace_scans, set_opset
from videossm.export.lowering.standard import lower_standard
from videossm.export.schemas import GATED_DELTA_SCAN, NORM_MIN

CONTRIB_DOMAIN = "com.microsoft"
CONTRIB_VERSION = 1
# Of scans that become one. Joined, they cost a CPU of two cores 1.1 times as much as apart, and small ones have little
# to gain on a GPU: six layers of `shapes` have 37 thousand values each, those of a 1.3B model 7 million.
LEAST_VALUES = 1 << 20


def lower_contrib(model: ModelProto) -> ModelProto:
    """Replaces every scan in `model` itself, and returns it. Raises LoweringError naming a node that cannot be."""
    batch_heads(model, LEAST_VALUES)
    found = any(node.op_type == GATED_DELTA_SCAN for node in model.graph.node)

    def replacement(scan: ScanNode) -> list[NodeProto]:
        return _linear_attention(model, scan)

    replace_scans(model, [GATED_DELTA_SCAN], replacement)
    if found:
        set_opset(model, CONTRIB_DOMAIN, CONTRIB_VERSION)
    return lower_standard(model)


def _linear_attention(model: ModelProto, scan: ScanNode) -> list[NodeProto]:
    node, prefix = scan.node, scan.prefix
    query, key, value, decay, beta, state = node.input
    types: dict[str, TensorType] = dict(zip(node.input, filter(None, scan.inputs), strict=True))
    heads = types[key].shape[2]
    attributes = scan.attributes()
    if not attributes["scale"]:
        raise LoweringError(f"{scan.where}: got scale 0, expected another; use the standard lowering")
    nodes: list[NodeProto] = []

    def add(op_type: str, inputs: list[str], label: str, output: str = "", **attributes: Any) -> str:
        output = output or prefix + label
        nodes.append(helper.make_node(op_type, inputs, [output], name=prefix + label, **attributes))
        return output

    def cast(name: str, label: str, element: int) -> str:
        nodes.append(helper.make_node("Cast", [name], [prefix + label], name=prefix + label, to=element))
        return prefix + label

    def constant(label: str, value: np.ndarray) -> str:
        tensor = numpy_helper.from_array(value, prefix + label)
        model.graph.initializer.append(tensor)
        return tensor.name

    def shape(label: str, *sizes: int) -> str:
        return constant(label, np.array(sizes, dtype=np.int64))

    def single(name: str, label: str) -> str:
        return name if types[name].element == TensorProto.FLOAT else cast(name, f"{label}_fp32", TensorProto.FLOAT)

    def normalized(name: str, label: str) -> str:
        """`name`, in fp32, over its last dimension, if the node says so."""
        if not attributes.get(f"normalize_{label}"):
            return name
        size = types[name].shape[-1]
        weight = constant(f"{label}_norm_weight", np.full(size, size**-0.5, np.float32))
        epsilon = NORM_MIN**2 / size
        return add("RMSNormalization", [name, weight], f"{label}_normalized", axis=-1, epsilon=epsilon)

    packed_shape = shape("packed_shape", 0, 0, -1)
    packed = [
        add("Reshape", [normalized(single(name, label), label), packed_shape], f"{label}_packed")
        for name, label in ((query, "query"), (key, "key"), (value, "value"))
    ]
    result = prefix + "output_packed"
    nodes.append(
        helper.make_node(
            "LinearAttention",
            [*packed, state, single(decay, "decay"), single(beta, "beta")],
            [result, node.output[1]],
            name=prefix + "linear_attention",
            domain=CONTRIB_DOMAIN,
            update_rule="gated_delta",
            q_num_heads=heads,
            kv_num_heads=heads,
            scale=attributes["scale"],
        )
    )
    if scan.wanted[0]:
        kind = types[value].element
        if kind != TensorProto.FLOAT:
            result = cast(result, "output_cast", kind)
        add("Reshape", [result, shape("output_shape", 0, 0, heads, -1)], "output", output=node.output[0])
    return nodes
