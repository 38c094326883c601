"""Each pass on a graph that it is for: fewer nodes, the same numbers; and on graphs that it must leave alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.export.optimize.batched import batch_outputs
from videossm.export.optimize.late_pixels import cast_pixels_last
from videossm.export.optimize.merged_linears import merge_linears
from videossm.export.optimize.modulated_norm import modulate_in_norm
from videossm.export.optimize.row_bias import make_biases_rows
from videossm.export.optimize.stacked import stack_constants
from videossm.export.optimize.tabulated import tabulate

BATCH, TOKENS, DIM, HEADS, LAYERS = 2, 5, 12, 3, 4
TOLERANCE = 1e-6  # relative error in the Frobenius norm
LEVELS = (1.0, 0.6, 0.25, 0.0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (
            nn.Linear(DIM, DIM),
            nn.Linear(DIM, DIM),
            nn.Linear(DIM, 8),
            nn.Linear(DIM, DIM),
        )


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta, self.decay = nn.Linear(DIM, HEADS), nn.Linear(DIM, HEADS, bias=False)
        self.decay_bias, self.rate = nn.Parameter(torch.randn(HEADS)), nn.Parameter(torch.randn(HEADS))
        self.weight, self.offset = nn.Parameter(torch.randn(HEADS)), nn.Parameter(torch.randn(HEADS))


class Layer(nn.Module):
    """What a block has of all that the passes look for."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.memory = Attention(), Memory()
        self.norm = nn.LayerNorm(DIM, elementwise_affine=False)
        self.modulation = nn.Parameter(torch.randn(1, 3, DIM))

    def forward(self, x: Tensor, time: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, gate = (self.modulation + time[:, None]).split(1, 1)
        hidden = self.norm(x) * (1 + scale) + shift
        q, k, v = self.self_attn.q(hidden), self.self_attn.k(hidden), self.self_attn.v(hidden)
        decay = -self.memory.rate.exp() * F.softplus(self.memory.decay(hidden) + self.memory.decay_bias)
        beta = self.memory.beta(hidden).sigmoid()
        gamma = torch.sigmoid(self.memory.weight * rho.log()[:, None] + self.memory.offset)
        mixed = self.self_attn.o(q * k.tanh()) * gamma.repeat_interleave(DIM // HEADS, 1)[:, None]
        return x + gate * mixed + v.mean(-1, keepdim=True), decay, beta


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.time = nn.Sequential(nn.Linear(1, DIM), nn.SiLU(), nn.Linear(DIM, DIM))

    def forward(self, x: Tensor, sigma: Tensor, rho: Tensor) -> list[Tensor]:
        time, gates = self.time(sigma[:, None]), []
        for block in self.blocks:
            x, *pair = block(x, time, rho)
            gates += pair
        return [x * sigma, *gates]


def alike(module):
    """Every precision treats all modules the same."""
    return None


PASSES = {
    "merged linears": lambda graph: merge_linears(graph, alike),
    "rows": lambda graph: make_biases_rows(graph),
    "batched": lambda graph: (merge_linears(graph, alike), batch_outputs(graph)),
    "stacked": lambda graph: stack_constants(graph),
    "norms": lambda graph: modulate_in_norm(graph),
    "levels": lambda graph: tabulate(graph, "sigma", LEVELS),
    "all": lambda graph: (
        merge_linears(graph, alike),
        batch_outputs(graph),
        make_biases_rows(graph),
        stack_constants(graph),
        modulate_in_norm(graph),
        tabulate(graph, "sigma", LEVELS),
    ),
}


@pytest.fixture
def network(traced):
    torch.manual_seed(0)
    gates = [f"{kind}.{i}" for i in range(LAYERS) for kind in ("decay", "beta")]
    inputs = (torch.randn(BATCH, TOKENS, DIM), torch.ones(1), torch.ones(1))
    return traced(Network(), inputs, ["x", "sigma", "rho"], ["y", *gates])


@pytest.mark.parametrize("name", PASSES)
def test_computes_the_same_with_fewer_nodes(network, run, operators, name):
    rng = np.random.default_rng(1)
    cases = [
        {
            "x": rng.standard_normal((BATCH, TOKENS, DIM)).astype(np.float32),
            "sigma": np.array([level], np.float32),
            "rho": np.array([0.3], np.float32),
        }
        for level in LEVELS
    ]
    before, nodes = [run(network, case) for case in cases], operators(network)
    names = [value.name for value in network.graph.outputs]
    PASSES[name](network.graph)
    RemoveUnusedNodesPass()(network)
    assert [value.name for value in network.graph.outputs] == names
    after = operators(network)
    assert sum(after.values()) <= sum(nodes.values()), f"{nodes} became {after}"
    for case, expected in zip(cases, before, strict=True):
        for label, got, wanted in zip(names, run(network, case), expected, strict=True):
            error = np.linalg.norm(got - wanted) / max(np.linalg.norm(wanted), 1e-30)
            assert error <= TOLERANCE, f"{label} at sigma {case['sigma'][0]}: relative error {error:.1e}"


def test_products_of_one_tensor_become_one(network, operators):
    merge_linears(network.graph, alike)
    modules = {node.name for node in network.graph if node.op_type == "MatMul"}
    for layer in range(LAYERS):
        assert f"blocks.{layer}.self_attn.q+k+v.product" in modules
        assert f"blocks.{layer}.memory.decay+beta.product" in modules
    assert operators(network)["MatMul"] == 3 * LAYERS, "q, k and v; the gates; o"


@pytest.mark.parametrize("apart", ["blocks.0.self_attn.k", "blocks.0.self_attn.q+k+v"])
def test_products_that_a_precision_treats_apart_stay_apart(network, apart):
    merge_linears(network.graph, lambda module: module == apart)
    modules = {node.name for node in network.graph if node.op_type == "MatMul"}
    merged = {name for name in modules if name.startswith("blocks.0.self_attn.") and "+" in name}
    assert merged == ({"blocks.0.self_attn.q+v.product"} if apart.endswith("k") else set())
    assert "blocks.1.self_attn.q+k+v.product" in modules


def test_gates_of_all_layers_are_made_at_once(network, operators):
    merge_linears(network.graph, alike)
    assert operators(network)["Softplus"] == LAYERS
    batch_outputs(network.graph)
    assert operators(network)["Softplus"] == 1


def test_a_norm_takes_its_modulation(network, operators):
    modulate_in_norm(network.graph)
    norms = [node for node in network.graph if node.op_type == "LayerNormalization"]
    assert len(norms) == LAYERS
    assert all(len(node.inputs) == 3 for node in norms)


def test_biases_of_tokens_are_rows_and_others_stay(network):
    make_biases_rows(network.graph)
    for node in network.graph:
        if node.op_type == "Add" and (product := node.inputs[0].producer()) and product.op_type == "MatMul":
            assert tuple(node.inputs[1].shape)[:2] == (1, 1), node.name


def test_what_depends_on_the_level_alone_is_looked_up(network, operators):
    tabulate(network.graph, "sigma", LEVELS)
    RemoveUnusedNodesPass()(network)
    after = operators(network)
    assert after["Gather"] == after["ArgMin"] == 1
    assert "Gemm" not in after, "the time embedding is in the table"


def test_a_level_between_two_takes_the_nearer_one(network, run):
    tabulate(network.graph, "sigma", LEVELS)
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((BATCH, TOKENS, DIM)).astype(np.float32), "rho": np.array([0.3], np.float32)}
    near, exact = (run(network, {**feeds, "sigma": np.array([s], np.float32)}) for s in (0.59, 0.6))
    np.testing.assert_array_equal(near[1], exact[1])


def test_without_levels_nothing_is_tabulated(network, operators):
    before = operators(network)
    tabulate(network.graph, "sigma", ())
    tabulate(network.graph, "no such input", LEVELS)
    assert operators(network) == before


def test_a_table_too_large_is_not_made(network, operators, monkeypatch):
    """As of a graph that spreads its time embedding over all tokens."""
    monkeypatch.setattr("videossm.export.optimize.tabulated.MOST_VALUES", DIM)
    before = operators(network)
    tabulate(network.graph, "sigma", LEVELS)
    assert operators(network) == before


def test_the_same_operation_twice_is_no_stack(run):
    """Nothing differs between the two, so there is nothing to stack: both read the whole of x."""
    sizes = [1, TOKENS, DIM]
    x, *values = (ir.Value(name=n, shape=ir.Shape(sizes), type=ir.TensorType(ir.DataType.FLOAT)) for n in "xabcd")
    a, b, c, d = values
    nodes = [ir.node("Sigmoid", [x], outputs=[a]), ir.node("Sigmoid", [x], outputs=[b])]
    nodes += [ir.node("Tanh", [a], outputs=[c]), ir.node("Tanh", [b], outputs=[d])]
    model = ir.Model(ir.Graph([x], [c, d], nodes=nodes, opset_imports={"": 23}, name="twice"), ir_version=10)
    feeds = {"x": np.random.default_rng(2).standard_normal(sizes).astype(np.float32)}
    before = run(model, feeds)
    stack_constants(model.graph)
    assert [node.op_type for node in model.graph] == ["Sigmoid", "Sigmoid", "Tanh", "Tanh"]
    for got, expected in zip(run(model, feeds), before, strict=True):
        np.testing.assert_array_equal(got, expected)


class Pixels(nn.Module):
    """To uint8, and then to another order and shape; another output is read in two places."""

    def forward(self, x: Tensor) -> list[Tensor]:
        pixels, other = (x * 100).round().to(torch.uint8), (x * 50).to(torch.uint8)
        return [pixels.transpose(1, 2).unflatten(1, (2, -1))[None], other.transpose(1, 2), other]


def test_pixels_become_uint8_at_the_end(traced, run):
    model = traced(Pixels(), (torch.rand(BATCH, TOKENS, DIM),), ["x"], ["video", "turned", "other"])
    feeds = {"x": np.random.default_rng(4).random((BATCH, TOKENS, DIM), np.float32)}
    before = run(model, feeds)
    cast_pixels_last(model.graph)
    for got, expected in zip(run(model, feeds), before, strict=True):
        np.testing.assert_array_equal(got, expected)
    video, turned, _ = model.graph.outputs
    assert (video.name, video.producer().op_type, video.dtype) == ("video", "Cast", ir.DataType.UINT8)
    assert turned.producer().op_type == "Transpose", "the cast is an output itself"


class Apart(nn.Module):
    """Nothing that a pass may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor, other: Tensor) -> list[Tensor]:
        q, k = self.self_attn.q(x), self.self_attn.k(other)
        return [self.norm(q * k) * other, self.self_attn.v(x + other)]


def test_products_of_different_tensors_and_norms_of_their_own_stay(traced, operators):
    inputs = (torch.randn(BATCH, TOKENS, DIM), torch.randn(BATCH, TOKENS, DIM))
    model = traced(Apart(), inputs, ["x", "other"], ["y", "v"])
    before = operators(model)
    merge_linears(model.graph, alike)
    batch_outputs(model.graph)
    stack_constants(model.graph)
    modulate_in_norm(model.graph)
    assert operators(model) == before
