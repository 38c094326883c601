"""What is one launch, and what it moves, on graphs whose launches are plain to see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from videossm.cost.counts import ATTENTION, MOVED, NORM, POINTWISE, PRODUCT, SCAN
from videossm.cost.launches import RULES, activation_bytes, launches

ROWS, WIDTH = 6, 8
X, W = (ROWS, WIDTH), (WIDTH, WIDTH)
BYTES, WEIGHT_BYTES = 4 * ROWS * WIDTH, 4 * WIDTH * WIDTH


def on(backend, graph):
    return launches(graph, RULES[backend])


def test_a_product_takes_the_elements_behind_it(engine_graph):
    """Bias, activation and residual are written nowhere."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["a"]),
        helper.make_node("Gelu", ["a"], ["g"]),
        helper.make_node("Add", ["g", "x"], ["y"]),
    ]
    graph = engine_graph(nodes, {"x": X}, {"y": X}, {"w": W, "b": (WIDTH,)})
    (fused,) = on("tensorrt", graph)
    own = BYTES + WEIGHT_BYTES + 4 * WIDTH + BYTES
    assert (fused.kind, fused.flops, fused.bytes, fused.own_bytes) == (PRODUCT, 2 * ROWS * WIDTH**2, own, own)
    single = on("onnxruntime", graph)
    assert [launch.what for launch in single] == ["MatMul", "Add", "Gelu", "Add"]
    assert sum(launch.bytes for launch in single) == own + 7 * BYTES  # x again; three results written and read


def test_what_two_read_is_written(engine_graph):
    """The product's result has two readers: it is written once, and both are one launch."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Sigmoid", ["p"], ["s"]),
        helper.make_node("Mul", ["p", "s"], ["m"]),
        helper.make_node("RMSNormalization", ["m", "g"], ["y"], axis=-1),
    ]
    graph = engine_graph(nodes, {"x": X}, {"y": X}, {"w": W, "g": (WIDTH,)})
    product, rest = on("tensorrt", graph)
    assert (product.bytes, rest.kind) == (2 * BYTES + WEIGHT_BYTES, NORM)
    assert rest.bytes == 2 * BYTES + 4 * WIDTH and rest.flops == (1 + 1 + 4) * ROWS * WIDTH
    assert activation_bytes(graph, RULES["tensorrt"]) == BYTES
    assert activation_bytes(graph, RULES["onnxruntime"]) == 3 * BYTES  # p, s and m


def test_elements_on_both_sides_of_a_product_are_two_launches(engine_graph):
    """The norm before it and the sum behind it share x, and are not one: the sum waits for the product."""
    nodes = [
        helper.make_node("RMSNormalization", ["x", "g"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["p"]),
        helper.make_node("Transpose", ["p"], ["t"], perm=[1, 0]),
        helper.make_node("Transpose", ["n"], ["u"], perm=[1, 0]),
        helper.make_node("Add", ["t", "u"], ["y"]),
    ]
    graph = engine_graph(nodes, {"x": X}, {"y": X[::-1]}, {"w": W, "g": (WIDTH,)})
    assert [launch.kind for launch in on("tensorrt", graph)] == [NORM, PRODUCT, POINTWISE]


def test_a_shape_moves_nothing_and_a_slice_reads_its_part(engine_graph):
    nodes = [
        helper.make_node("Reshape", ["x", "to"], ["r"]),
        helper.make_node("Slice", ["r", "from", "till"], ["y"]),
    ]
    constants = {"to": np.array([ROWS * WIDTH]), "from": np.array([0]), "till": np.array([4])}
    graph = engine_graph(nodes, {"x": X}, {"y": (4,)}, constants=constants)
    for backend in RULES:
        (moved,) = on(backend, graph)
        assert (moved.kind, moved.bytes) == (MOVED, 2 * 4 * 4 + 2 * 8)  # and the two places, int64


@pytest.mark.parametrize(
    ("element", "masked", "tensorrt", "onnxruntime"),
    [
        (TensorProto.FLOAT16, False, (0, 1.0), (0, 1.0)),
        (TensorProto.FLOAT16, True, (0, 1.0), (2 * 2 * 5 * 7, 0.5)),
        (TensorProto.FLOAT, False, (4 * 4 * 3 * 5 * 7, 1.0), (4 * 4 * 3 * 5 * 7, 1.0)),
    ],
    ids=["half", "half-with-a-mask", "fp32"],
)
def test_attention(engine_graph, element, masked, tensorrt, onnxruntime):
    """One kernel in 16 bits; scores in memory in fp32; a bias of two bytes a number where ONNX Runtime gets a mask."""
    shapes = {"q": (1, 3, 5, 8), "k": (1, 3, 7, 8), "v": (1, 3, 7, 8)}
    constants = {"m": np.ones((1, 1, 5, 7), bool)} if masked else {}
    nodes = [helper.make_node("Attention", ["q", "k", "v", *constants], ["y"])]
    graph = engine_graph(nodes, shapes, {"y": shapes["q"]}, element=element, constants=constants)
    size = 2 if element == TensorProto.FLOAT16 else 4
    plain = size * 3 * 8 * (5 + 7 + 7 + 5) + (5 * 7 if masked else 0)
    for backend, (extra, rate) in (("tensorrt", tensorrt), ("onnxruntime", onnxruntime)):
        (launch,) = on(backend, graph)
        assert (launch.kind, launch.bytes, launch.rate) == (ATTENTION, plain + extra, rate)


@pytest.mark.parametrize(("element", "blocks"), [(TensorProto.FLOAT, 7), (TensorProto.BFLOAT16, 4)])
def test_a_scan_takes_its_blocks_one_after_the_other(engine_graph, element, blocks):
    """100 tokens: blocks of 16 in fp32 and of 32 in 16 bits."""
    inputs = {"q": (1, 100, 2, 4), "k": (1, 100, 2, 4), "v": (1, 100, 2, 4), "g": (1, 100, 2), "b": (1, 100, 2)}
    inputs["s"] = (1, 2, 4, 4)
    nodes = [helper.make_node("GatedDeltaScan", list(inputs), ["", "last"], domain="videossm", scale=1.0)]
    (launch,) = on("tensorrt", engine_graph(nodes, inputs, {"last": (1, 2, 4, 4)}, element=element))
    assert (launch.kind, launch.serial) == (SCAN, blocks)


def test_quantised_operands_multiply_as_they_are_in_tensorrt(engine_graph):
    scale, zero = np.array(0.1, np.float32), np.array(0, np.int8)
    constants = {"s": scale, "z": zero, "wq": np.zeros((WIDTH, WIDTH), np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    graph = engine_graph(nodes, {"x": X}, {"y": X}, constants=constants)
    assert sum(graph.weights.values()) == WIDTH**2 + 4 + 1
    quantize, product = on("tensorrt", graph)
    assert (quantize.kind, product.kind, product.dtype) == (POINTWISE, PRODUCT, "int8")
    assert product.bytes == ROWS * WIDTH + WIDTH**2 + 5 + BYTES
    assert on("onnxruntime", graph)[-1].dtype == "float32" and len(on("onnxruntime", graph)) == 4


def test_a_repeated_body_is_as_many_launches(engine_graph):
    info = [helper.make_tensor_value_info(name, 1, None) for name in ("s", "x", "next", "out")]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "w"], ["p"]),
            helper.make_node("Add", ["p", "x"], ["next"]),
            helper.make_node("Identity", ["next"], ["out"]),
        ],
        "body",
        info[:2],
        info[2:],
    )
    node = helper.make_node("Scan", ["s0", "xs"], ["last", "all"], body=body, num_scan_inputs=1)
    graph = engine_graph([node], {"s0": X, "xs": (9, *X)}, {"last": X, "all": (9, *X)}, {"w": W})
    (fused,) = on("tensorrt", graph)
    assert (fused.kind, fused.count, fused.flops) == (SCAN, 9, 9 * 2 * ROWS * WIDTH**2)
    assert sum(launch.count for launch in on("onnxruntime", graph)) == 18


def test_of_what_is_written_in_place_the_part_counts(engine_graph):
    """Two rows of x: they are read and written; nothing else of x is, but by the product that reads all."""
    nodes = [
        helper.make_node("ScatterND", ["x", "where", "own"], ["written"]),
        helper.make_node("MatMul", ["written", "w"], ["y"]),
    ]
    constants = {"where": np.array([[0], [1]])}
    shapes = {"x": X, "own": (2, WIDTH)}
    graph = engine_graph(nodes, shapes, {"written": X, "y": X}, {"w": W}, constants=constants)
    own = 4 * 2 * WIDTH
    graph = replace(graph, in_place={"written": own})
    assert graph.output_bytes == own + BYTES
    for backend in RULES:
        write, product = on(backend, graph)
        assert (write.kind, write.bytes) == (MOVED, 2 * own + constants["where"].nbytes)
        assert (product.kind, product.bytes) == (PRODUCT, 2 * BYTES + WEIGHT_BYTES)


def test_fp32_products_are_tf32_s_where_the_plan_allows_it(engine_graph):
    graph = engine_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": X}, {"y": X}, {"w": W})
    found = {name: [launches(graph, rules, tf32)[0].dtype for tf32 in (False, True)] for name, rules in RULES.items()}
    assert found == {"tensorrt": ["float32", "tf32"], "onnxruntime": ["float32", "float32"]}
