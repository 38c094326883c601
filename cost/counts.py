"""FLOPs and kinds of operators, by closed formulas. A multiply-add is two.

| kind | operators | FLOPs |
|---|---|---|
| product | MatMul, Gemm | 2 M N K |
| convolution | Conv | 2 numbers of the output, channels of a group, size of the kernel |
| attention | Attention | 2 B H Lq Lk (d_qk + d_v) |
| scan | GatedDeltaScan, LinearAttention | a token of a head: (5, with an output 7) d_k d_v |
|  | SelectiveScan | a token of a channel: 7 N |
| norm | norms, sums, softmax | some for each number read, see NORMS |
| element-wise | RotaryEmbedding 3, all others 1 | for each number written |
| movement | Transpose, Concat, Slice, .. | 0 |
| free | Reshape, .. | 0: the same bytes under another shape |
"""

from __future__ import annotations

from math import prod

from videossm.cost.graph import Node, Tensor

FREE = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
MOVEMENT = frozenset(
    {
        *(
            "Concat",
            "DepthToSpace",
            "Expand",
            "Gather",
            "GatherElements",
            "GatherND",
            "Pad",
            "Resize",
            "ScatterElements",
        ),
        *("ScatterND", "Slice", "SpaceToDepth", "Split", "TensorScatter", "Tile", "Transpose"),
    }
)
READS_A_PART = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})  # of the first input
NORMS = {  # FLOPs for each number read
    "LayerNormalization": 7,  # mean 1, subtract 1, square and sum 2, scale 1, weight 1, bias 1
    "RMSNormalization": 4,  # square and sum 2, scale 1, weight 1
    "GroupNormalization": 7,
    "InstanceNormalization": 7,
    "Softmax": 5,  # largest 1, subtract 1, exponential 1, sum 1, divide 1
    "LogSoftmax": 5,
    "CumSum": 1,
    "ArgMin": 1,
    "ArgMax": 1,
    "TopK": 1,
}
ELEMENTWISE = {"RotaryEmbedding": 3}
GATED_SCANS = frozenset({"com.microsoft:LinearAttention", "LinearAttention", "videossm:GatedDeltaScan"})
SELECTIVE_SCAN = "videossm:SelectiveScan"
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})

PRODUCT, CONVOLUTION, ATTENTION, SCAN = "products", "convolutions", "attention", "scans"
NORM, POINTWISE, MOVED, NOTHING = "norms", "element-wise", "movement", "free"
HEAVY = (PRODUCT, CONVOLUTION, ATTENTION, SCAN)


def kind_of(node: Node) -> str:
    operator = node.operator
    if operator in ("MatMul", "Gemm"):
        return PRODUCT
    if operator in ("Conv", "ConvTranspose"):
        return CONVOLUTION
    if operator == "Attention":
        return ATTENTION
    if operator in GATED_SCANS or operator in (SELECTIVE_SCAN, "Scan"):
        return SCAN
    if operator in NORMS or operator.startswith("Reduce"):
        return NORM
    if operator in FREE:
        return NOTHING
    return MOVED if operator in MOVEMENT else POINTWISE


def flops_of(node: Node) -> int:
    operator, kind = node.operator, kind_of(node)
    if kind == PRODUCT:
        first = _given(node, 0).shape
        transposed = operator == "Gemm" and node.attributes.get("transA", 0)
        return 2 * node.output.size * first[-2 if transposed else -1]
    if kind == CONVOLUTION:
        return _convolution(node)
    if kind == ATTENTION:
        batch, heads, queries, keys, width = attention_sizes(node)
        return 2 * batch * heads * queries * keys * width
    if kind == SCAN:
        return _scan(node)
    if kind == NORM:
        return NORMS.get(operator, 1) * _given(node, 0).size
    return ELEMENTWISE.get(operator, 1) * node.output.size if kind == POINTWISE else 0


def attention_sizes(node: Node) -> tuple[int, int, int, int, int]:
    """Batch, heads, queries, keys, and the sum of a head's width in keys and in values."""
    query, key, value = (_given(node, index).shape for index in range(3))
    if len(query) == 4:
        return query[0], query[1], query[2], key[2], query[3] + value[3]
    heads, of_keys = int(node.attributes["q_num_heads"]), int(node.attributes["kv_num_heads"])
    return query[0], heads, query[1], key[1], query[2] // heads + value[2] // of_keys


def is_masked(node: Node) -> bool:
    return len(node.inputs) > 3 and node.inputs[3] is not None


def tokens_of(node: Node) -> int:
    """That a scan takes one after the other."""
    if node.operator == SELECTIVE_SCAN:
        return _given(node, 0).shape[2]
    return _given(node, 0).shape[1] if node.operator in GATED_SCANS else node.times


def _convolution(node: Node) -> int:
    """Weights [C_out, C_in / groups, kernel ..]; a transposed one multiplies for each number that it reads."""
    weight = _given(node, 1).shape
    each = prod(weight[1:])
    numbers = _given(node, 0).size if node.operator == "ConvTranspose" else node.output.size
    return 2 * numbers * each


def _scan(node: Node) -> int:
    if node.body is not None:
        return node.times * sum(flops_of(inner) for inner in node.body.nodes)
    if node.operator == SELECTIVE_SCAN:  # dt A, its exponential, dt B u, and two multiply-adds
        return 7 * _given(node, 0).size * _given(node, 2).shape[1]
    last = node.outputs[1]
    assert last is not None, "a scan without a final state"
    batch, heads, key_dim, value_dim = last.shape
    each = 7 if node.outputs[0] is not None else 5  # S decays 1, S^T k 2, what is added 2, S^T q 2
    return each * batch * heads * tokens_of(node) * key_dim * value_dim


def _given(node: Node, index: int) -> Tensor:
    tensor = node.inputs[index]
    assert tensor is not None, f"{node.name}: input {index} is left out"
    return tensor
