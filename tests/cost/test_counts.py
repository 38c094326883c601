"""FLOPs of graphs that are small enough to count by hand, and of a whole model against a formula in its sizes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from videossm.cost.counts import ATTENTION, CONVOLUTION, MOVED, NORM, POINTWISE, PRODUCT, SCAN, flops_of, kind_of
from videossm.cost.graph import read_graph
from videossm.export.schemas import DOMAIN
from videossm.models.videossm.presets import test as small_preset


def counted(graph):
    """FLOPs by kind; those of kinds without any are left out."""
    found = {}
    for node in graph.nodes:
        if flops := flops_of(node):
            found[kind_of(node)] = found.get(kind_of(node), 0) + flops
    return found


def test_product(engine_graph):
    """[2, 3, 5] [5, 7]: 2 x 3 x 7 numbers of 5 multiply-adds."""
    graph = engine_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (2, 3, 5)}, {"y": (2, 3, 7)}, {"w": (5, 7)}
    )
    assert counted(graph) == {PRODUCT: 2 * 2 * 3 * 5 * 7}
    assert sum(graph.weights.values()) == 5 * 7 * 4


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(engine_graph, transposed):
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transA=transposed)]
    graph = engine_graph(nodes, {"x": (5, 3) if transposed else (3, 5)}, {"y": (3, 7)}, {"w": (5, 7)})
    assert counted(graph) == {PRODUCT: 2 * 3 * 5 * 7}


def test_convolution(engine_graph):
    """Two groups: each of 8 x 4 x 4 numbers sums 3 channels of a 3 x 3 kernel."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=2)]
    graph = engine_graph(nodes, {"x": (1, 6, 4, 4)}, {"y": (1, 8, 4, 4)}, {"w": (8, 3, 3, 3)})
    assert counted(graph) == {CONVOLUTION: 2 * 8 * 4 * 4 * 3 * 3 * 3}


@pytest.mark.parametrize("packed", [False, True], ids=["4d", "packed"])
def test_attention(engine_graph, packed):
    """Batch 2, 3 heads of 8, 5 queries and 7 keys: scores and sums of values, 2 multiply-adds a number each."""
    shapes = {"q": (2, 5, 24), "k": (2, 7, 24), "v": (2, 7, 24)}
    attributes = {"q_num_heads": 3, "kv_num_heads": 3}
    if not packed:
        shapes, attributes = {"q": (2, 3, 5, 8), "k": (2, 3, 7, 8), "v": (2, 3, 7, 8)}, {}
    nodes = [helper.make_node("Attention", ["q", "k", "v"], ["y"], **attributes)]
    assert counted(engine_graph(nodes, shapes, {"y": shapes["q"]})) == {ATTENTION: 4 * 2 * 3 * 5 * 7 * 8}


@pytest.mark.parametrize("wanted", [True, False])
def test_gated_delta_scan(engine_graph, wanted):
    """5 FLOPs for each number of a head's state and token; 2 more where it is read out."""
    rows, gates, state = (1, 9, 2, 4), (1, 9, 2), (1, 2, 4, 4)
    inputs = {"q": rows, "k": rows, "v": rows, "g": gates, "b": gates, "s": state}
    outputs = {"y": rows, "last": state} if wanted else {"last": state}
    node = helper.make_node("GatedDeltaScan", list(inputs), ["y" if wanted else "", "last"], domain=DOMAIN, scale=1.0)
    assert counted(engine_graph([node], inputs, outputs)) == {SCAN: (7 if wanted else 5) * 9 * 2 * 4 * 4}


def test_selective_scan(engine_graph):
    """7 FLOPs for each state of each token of a channel."""
    inputs = {"u": (1, 3, 9), "dt": (1, 3, 9), "A": (3, 4), "B": (1, 4, 9), "C": (1, 4, 9), "s": (1, 3, 4)}
    node = helper.make_node("SelectiveScan", list(inputs), ["y", "last"], domain=DOMAIN, delta_softplus=1)
    assert counted(engine_graph([node], inputs, {"y": (1, 3, 9), "last": (1, 3, 4)})) == {SCAN: 7 * 3 * 9 * 4}


def test_a_scan_of_onnx_repeats_its_body(engine_graph):
    """A running sum over 9 rows of 5: one addition of 5 each."""
    info = [helper.make_tensor_value_info(name, 1, None) for name in ("s", "x", "next", "out")]
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "x"], ["next"]), helper.make_node("Identity", ["next"], ["out"])],
        "body",
        info[:2],
        info[2:],
    )
    node = helper.make_node("Scan", ["s0", "xs"], ["last", "all"], body=body, num_scan_inputs=1)
    graph = engine_graph([node], {"s0": (5,), "xs": (9, 5)}, {"last": (5,), "all": (9, 5)})
    assert counted(graph) == {SCAN: 9 * 5}


def test_norms_elements_and_movements(engine_graph):
    nodes = [
        helper.make_node("LayerNormalization", ["x", "w", "b"], ["n"], axis=-1),
        helper.make_node("Mul", ["n", "scale"], ["m"]),
        helper.make_node("Transpose", ["m"], ["t"], perm=[1, 0]),
        helper.make_node("Reshape", ["t", "to"], ["y"]),
    ]
    constants = {"to": np.array([40])}
    graph = engine_graph(
        nodes, {"x": (5, 8), "scale": (1, 8)}, {"y": (40,)}, {"w": (8,), "b": (8,)}, constants=constants
    )
    assert counted(graph) == {NORM: 7 * 40, POINTWISE: 40}
    assert [kind_of(node) for node in graph.nodes] == [NORM, POINTWISE, MOVED, "free"]


def test_what_is_computed_of_constants_is_a_constant(engine_graph):
    nodes = [helper.make_node("Mul", ["w", "w"], ["square"]), helper.make_node("Add", ["x", "square"], ["y"])]
    graph = engine_graph(nodes, {"x": (3, 5)}, {"y": (3, 5)}, {"w": (5,)})
    assert [node.operator for node in graph.nodes] == ["Add"]


def test_a_model_s_pass_matches_the_formula(small_plan_in):
    """In tokens, widths and layers, written down from the model's equations."""
    plan, config = small_plan_in("standard"), small_preset()
    t, tokens = config.transformer, config.chunk_tokens * config.batch
    keys = config.chunk_tokens + config.window_tokens
    block = 4 * t.dim**2  # queries, keys, values, output
    block += 2 * t.dim**2  # queries and output of the prompt's attention
    block += 2 * t.dim * t.ffn_dim + t.dim**2  # and the gate of what the memory says
    ends = 2 * t.latent_channels * t.patch[1] * t.patch[2] * t.dim  # the embedding, and the head
    read_out, gates = t.dim * t.head_dim, 2 * t.dim * t.heads  # what is read of the memory; its decay and beta
    for name in plan.manifest.pass_engines:
        found = counted(read_graph(plan.path / plan.manifest.engines[name].file))
        assert found[ATTENTION] == 4 * tokens * t.layers * t.dim * (keys + t.text_len)
        # A pass that does not commit may leave out the gates, and a read-out may be a sum of two products.
        least = 2 * tokens * (t.layers * (block + read_out) + ends)
        most = least + 2 * tokens * t.layers * (gates + read_out)
        assert least <= found[PRODUCT] <= 1.01 * most  # products of a single row, of the noise level, come to it
