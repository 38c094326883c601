"""What is quantised and what is not: by name, and without losing any product with a constant weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, parser

from videossm.calib.linears import LayersError, find_linears, find_products
from videossm.models.videossm.presets import test as small_preset
from videossm.runtime.manifest import Layers

ENGINES = ["step", "text_encoder", "turn", "memory", "decoder_first", "decoder"]
LAYERS = range(small_preset().transformer.layers)
BLOCK = ["self_attn.q+k+v", "self_attn.o", "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2"]
QUANTISED = {"step": [f"transformer.blocks.{i}.{name}" for i in LAYERS for name in BLOCK]}
UNNAMED = "not named by the family"
EVERYTHING = (Layers(modules=".*", keep=None),)
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
def test_chooses_by_name(load_graph: Callable[[str], ModelProto], layers: Sequence[Layers], engine: str) -> None:
    found = find_linears(load_graph(engine), engine, layers)
    assert [linear.name for linear in found.linears] == QUANTISED.get(engine, [])
    assert {linear.engine for linear in found.linears} <= {engine}


def test_says_why_the_others_are_skipped(load_graph: Callable[[str], ModelProto], layers: Sequence[Layers]) -> None:
    _, skipped = find_linears(load_graph("step"), "step", layers)
    assert {entry.name: entry.reason for entry in skipped} == SKIPPED_IN_STEP
    _, skipped = find_linears(load_graph("decoder"), "decoder", layers)
    assert skipped and {entry.reason for entry in skipped} == {UNNAMED}


@pytest.mark.parametrize("engine", ENGINES)
def test_loses_no_product_with_a_constant(
    load_graph: Callable[[str], ModelProto], layers: Sequence[Layers], engine: str
) -> None:
    model = load_graph(engine)
    constant = {tensor.name for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")]
    linears, skipped = find_linears(model, engine, layers)
    assert len(linears) + len(skipped) == sum(not constant.isdisjoint(node.input) for node in products)


@pytest.mark.parametrize("engine", ENGINES)
def test_names_are_unique_in_an_engine(
    load_graph: Callable[[str], ModelProto], layers: Sequence[Layers], engine: str
) -> None:
    linears, skipped = find_linears(load_graph(engine), engine, layers)
    names = [layer.name for layer in linears] + [layer.name for layer in skipped]
    assert len(names) == len(set(names))


def test_knows_the_tensors_of_a_linear(load_graph: Callable[[str], ModelProto], layers: Sequence[Layers]) -> None:
    model = load_graph("step")
    by_name = {linear.name: linear for linear in find_linears(model, "step", layers).linears}
    packed, ffn = (by_name[f"transformer.blocks.1.{name}"] for name in ("self_attn.q+k+v", "ffn.0"))
    assert packed.input != ffn.input
    config = small_preset().transformer
    assert packed.shape == (config.dim, 3 * config.dim)
    assert ffn.shape == (config.dim, config.ffn_dim)
    nodes = {node.name: node for node in model.graph.node}
    assert list(nodes[ffn.node].input) == [ffn.input, ffn.weight]
    assert ffn.bias == "transformer.blocks.1.ffn.0.bias.row"
    assert ffn.bias_node and set(nodes[ffn.bias_node].input) == {*nodes[ffn.node].output, ffn.bias}


def test_reads_no_weights(load_graph: Callable[[str], ModelProto], layers: Sequence[Layers]) -> None:
    """Those of large plans lie in a file of their own."""
    model = load_graph("step")
    expected = find_linears(model, "step", layers)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="absent.data")
    assert find_linears(model, "step", layers) == expected


def test_the_first_pattern_that_matches_the_whole_name_counts() -> None:
    model = in_module(
        """graph (float[1, 6, 4] x, float[6, 4] z, float[1, 4, 6] c)
        => (float[1, 6, 4] a, float[1, 6, 4] b, float[1, 6, 4] more, float[6, 4] g, float[6, 4] flat, float[1, 4, 6] d)
        <float[4, 4] w = {0}, float[4, 4, 1] k = {0}, float[4] bias = {0}> {
            a = MatMul(x, w)
            b = MatMul(x, w)
            more = MatMul(x, w)
            g = Gemm(z, w, bias)
            flat = MatMul(z, w)
            d = Conv(c, k)
        }""",
        a="blocks.0.gate",
        more="blocks.0",
        g="blocks.0.ffn",
        flat="blocks.1.ffn",
        d="blocks.2.conv",
    )
    form = "expected a MatMul or a convolution of an activation [B, .., N] with an fp32 initializer"
    table = (Layers(modules=r".*\.gate", keep="a gate"), Layers(modules=r"blocks\..+", keep=None))
    linears, skipped = find_linears(model, "pass", table)
    assert [(linear.name, linear.operator, linear.shape) for linear in linears] == [
        ("blocks.0", "MatMul", (4, 4)),
        ("blocks.2.conv", "Conv", (4, 4, 1)),
    ]
    assert [(entry.name, entry.reason) for entry in skipped] == [
        ("blocks.0.gate", "a gate"),
        ("node_b", UNNAMED),
        ("blocks.0.ffn", f"got Gemm, {form}"),
        ("blocks.1.ffn", f"got MatMul, {form}"),
    ]
    assert {entry.reason for entry in find_linears(model, "pass", ())[1]} == {UNNAMED}


def test_a_weight_that_is_computed_in_the_graph() -> None:
    """As in large plans, where the exporter leaves a transposition to the backend."""
    model = in_module(
        """graph (float[1, 6, 8] x) => (float[1, 6, 4] y) <float[4, 8] w = {0}> {
            transposed = Transpose<perm = [1, 0]>(w)
            y = MatMul(x, transposed)
        }""",
        y="embedding",
    )
    linears, skipped = find_linears(model, "pass", EVERYTHING)
    assert (linears, [entry.name for entry in skipped]) == ([], ["embedding"])


def test_products_of_one_module_are_numbered() -> None:
    model = in_module(
        """graph (float[1, 6, 4] x) => (float[1, 6, 4] z) <float[4, 4] w = {0}> {
            y = MatMul(x, w)
            z = MatMul(y, w)
        }""",
        y="twice",
        z="twice",
    )
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 4]))
    assert [linear.name for linear in find_linears(model, "pass", EVERYTHING).linears] == ["twice", "twice.2"]


@pytest.mark.parametrize(("groups", "found"), [(1, 1), (2, 0)])
def test_groups_of_a_transposed_convolution(groups: int, found: int) -> None:
    """Its weight has no axis of output channels then."""
    model = in_module(
        f"""graph (float[1, 4, 6] x) => (float[1, {4 * groups}, 8] y) <float[4, 4, 3] w = {{0}}> {{
            y = ConvTranspose<group = {groups}>(x, w)
        }}""",
        y="up",
    )
    linears, skipped = find_linears(model, "after", EVERYTHING)
    assert (len(linears), len(skipped)) == (found, 1 - found)


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(LayersError, match=r"^lower_precision\.layers\.0\.modules: got '\('.* expected a regular"):
        find_linears(ModelProto(), "pass", (Layers(modules="(", keep=None),))


def test_an_add_that_is_no_bias() -> None:
    """A residual, and a product that more than the bias reads."""
    model = in_module(
        """graph (float[1, 6, 4] x) => (float[1, 6, 4] residual, float[1, 6, 4] biased, float[1, 6, 4] v)
        <float[4, 4] w = {0}, float[4] bias = {0}> {
            k = MatMul(x, w)
            residual = Add(k, x)
            v = MatMul(x, w)
            biased = Add(v, bias)
            more = Neg(v)
        }"""
    )
    linears, _ = find_linears(model, "pass", EVERYTHING)
    assert [(linear.bias_node, linear.bias) for linear in linears] == [(None, None)] * 2


def test_products_of_attention(load_graph: Callable[[str], ModelProto], layers: Sequence[Layers]) -> None:
    model = load_graph("step")
    products = find_products(model, "step", layers)
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
    assert find_products(load_graph("text_encoder"), "text_encoder", layers) == []


def test_graph_of_unknown_origin() -> None:
    """No names of modules at all: nodes go by their own."""
    model = onnx.ModelProto()
    model.graph.node.append(helper.make_node("Attention", ["q", "k", "v"], ["y"], name="node_y"))
    assert find_linears(model, "pass", EVERYTHING) == ([], [])
    assert [product.name for product in find_products(model, "pass", EVERYTHING)] == ["node_y"]
    assert find_products(model, "pass", ()) == []
