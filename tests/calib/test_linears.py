"""What is quantised and what is not: by name, and without losing any product with a constant weight."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, parser

from videossm.calib.linears import find_linears, find_products
from videossm.models.videossm.presets import test as small_preset

ENGINES = ["step", "text_encoder", "memory", "decoder"]
LAYERS = range(small_preset().transformer.layers)
BLOCK = ["self_attn.q+k+v", "self_attn.o", "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2"]
QUANTISED = {
    "step": [f"transformer.blocks.{i}.{name}" for i in LAYERS for name in BLOCK],
    "text_encoder": [],
    "memory": [],
    "decoder": [],
}
GATE = "gate of the memory, whose error the scan amplifies"
SKIPPED_IN_STEP = {
    **{f"transformer.blocks.{i}.memory.{name}": GATE for i in LAYERS for name in ("decay+beta", "out_gate")},
    "transformer.patch_embedding": "first layer",
    "transformer.head.head": "last layer",
}


def in_module(graph: str, **modules: str) -> ModelProto:
    """A graph whose nodes belong to modules, by the name of their output."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {graph}')
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
        if module := modules.get(node.output[0]):
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(["", module, node.output[0]]))
    return model


@pytest.mark.parametrize("engine", ENGINES)
def test_chooses_by_name(load_graph: Callable[[str], ModelProto], engine: str) -> None:
    found = find_linears(load_graph(engine), engine)
    assert [linear.name for linear in found.linears] == QUANTISED[engine]
    assert {linear.engine for linear in found.linears} <= {engine}


def test_says_why_the_others_are_skipped(load_graph: Callable[[str], ModelProto]) -> None:
    _, skipped = find_linears(load_graph("step"), "step")
    assert {entry.name: entry.reason for entry in skipped} == SKIPPED_IN_STEP
    _, skipped = find_linears(load_graph("decoder"), "decoder")
    assert {entry.reason for entry in skipped} == {"autoencoder"}


@pytest.mark.parametrize("engine", ENGINES)
def test_loses_no_product_with_a_constant(load_graph: Callable[[str], ModelProto], engine: str) -> None:
    model = load_graph(engine)
    constant = {tensor.name for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    linears, skipped = find_linears(model, engine)
    assert len(linears) + len(skipped) == sum(not constant.isdisjoint(node.input) for node in products)


def test_names_are_unique_over_all_engines(load_graph: Callable[[str], ModelProto]) -> None:
    found = [find_linears(load_graph(engine), engine) for engine in ENGINES]
    names = [entry.name for linears, skipped in found for entry in (*linears, *skipped)]
    assert len(names) == len(set(names))


def test_knows_the_tensors_of_a_linear(load_graph: Callable[[str], ModelProto]) -> None:
    model = load_graph("step")
    by_name = {linear.name: linear for linear in find_linears(model, "step").linears}
    packed, ffn = (by_name[f"transformer.blocks.1.{name}"] for name in ("self_attn.q+k+v", "ffn.0"))
    assert packed.input != ffn.input
    config = small_preset().transformer
    assert packed.shape == (config.dim, 3 * config.dim)
    assert ffn.shape == (config.dim, config.ffn_dim)
    nodes = {node.name: node for node in model.graph.node}
    assert list(nodes[ffn.node].input) == [ffn.input, ffn.weight]
    assert ffn.bias == "transformer.blocks.1.ffn.0.bias.row"
    assert ffn.bias_node and set(nodes[ffn.bias_node].input) == {*nodes[ffn.node].output, ffn.bias}


def test_reads_no_weights(load_graph: Callable[[str], ModelProto]) -> None:
    """Those of large plans lie in a file of their own."""
    model = load_graph("step")
    expected = find_linears(model, "step")
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="absent.data")
    assert find_linears(model, "step") == expected


def test_patches_whose_weight_is_transposed_in_the_graph() -> None:
    """As in large plans, where the exporter leaves that to the backend."""
    model = in_module(
        """step (float[1, 6, 8] x, float[1, 6, 4] z) => (float[1, 6, 4] y, float[1, 6, 4] other)
        <float[4, 8] patches = {0}, float[4, 4] w = {0}> {
            transposed = Transpose<perm = [1, 0]>(patches)
            y = MatMul(x, transposed)
            other = MatMul(z, w)
        }""",
        other="transformer.head.head",
    )
    linears, skipped = find_linears(model, "step")
    assert not linears
    assert [(entry.name, entry.reason) for entry in skipped] == [
        ("transformer.patch_embedding", "first layer"),
        ("transformer.head.head", "last layer"),
    ]


def test_what_it_does_not_know_is_skipped_and_named() -> None:
    model = in_module(
        """step (float[1, 6, 4] x, float[6, 4] z, float[1, 4, 6] c)
        => (float[1, 6, 4] a, float[1, 6, 4] b, float[6, 4] g, float[1, 4, 6] d)
        <float[4, 4] w = {0}, float[4, 4, 1] k = {0}, float[4] bias = {0}> {
            a = MatMul(x, w)
            b = MatMul(x, w)
            g = Gemm(z, w, bias)
            d = Conv(c, k)
        }""",
        a="adapter.0",
        g="transformer.blocks.0.ffn.0",
    )
    linears, skipped = find_linears(model, "step")
    assert not linears
    assert [(entry.name, entry.reason) for entry in skipped] == [
        ("adapter.0", "unknown"),
        ("node_b", "unknown"),
        ("transformer.blocks.0.ffn.0", "got Gemm, expected MatMul(x, W) with an fp32 initializer W [K, N]"),
        ("node_d", "unknown"),
    ]


def test_an_add_that_is_no_bias() -> None:
    """A residual, and a product that more than the bias reads."""
    model = in_module(
        """step (float[1, 6, 4] x) => (float[1, 6, 4] residual, float[1, 6, 4] biased, float[1, 6, 4] v)
        <float[4, 4] w = {0}, float[4] bias = {0}> {
            k = MatMul(x, w)
            residual = Add(k, x)
            v = MatMul(x, w)
            biased = Add(v, bias)
            more = Neg(v)
        }""",
        k="transformer.blocks.0.self_attn.k",
        v="transformer.blocks.0.self_attn.v",
    )
    linears, _ = find_linears(model, "step")
    assert [(linear.bias_node, linear.bias) for linear in linears] == [(None, None)] * 2


def test_products_of_attention(load_graph: Callable[[str], ModelProto]) -> None:
    model = load_graph("step")
    products = find_products(model, "step")
    kinds = ("self_attn", "cross_attn")
    assert [product.name for product in products] == [
        f"transformer.blocks.{i}.{kind}.attention" for i in LAYERS for kind in kinds
    ]
    nodes = {node.name: node for node in model.graph.node}
    for product in products:
        assert nodes[product.node].op_type == "Attention"
        assert list(nodes[product.node].input[:3]) == [product.query, product.key, product.value]
        masked = len(nodes[product.node].input) > 3
        assert masked == ("self_attn" in product.name), "only the window has empty slots"
    (text,) = find_products(load_graph("text_encoder"), "text_encoder")
    assert text.name == "text_encoder.layers.0.attention"


def test_graph_of_unknown_origin() -> None:
    """No names of modules at all: nothing is chosen, nothing fails."""
    model = onnx.ModelProto()
    model.graph.node.append(helper.make_node("Attention", ["q", "k", "v"], ["y"], name="node_y"))
    assert find_linears(model, "step") == ([], [])
    assert [product.name for product in find_products(model, "step")] == ["node_y.attention"]
