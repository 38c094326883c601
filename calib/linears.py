"""The products of a graph that can be quantised, by the module that each comes from, and why the others are not.

A linear is a `MatMul(x, W)` with a constant W, mostly with an `Add(bias)` after it. Which of them are quantised is a
table of module names: the projections of attention and feed-forward. Gates stay fp32, because the scan
amplifies their error; so do the first and the last layer and what runs once a step on one token.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from onnx import ModelProto, NodeProto, TensorProto

from videossm.calib.graph import constants, initializers, module_of, readers

PATCH_EMBEDDING = "transformer.patch_embedding"  # traced outside its module, so that its node names none
_KINDS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_QUANTISED = ""
_TABLE = (  # module, why it is skipped
    (r"transformer\.blocks\.\d+\.(self_attn\.([qkvo]|q\+k\+v)|cross_attn\.[qo])", _QUANTISED),
    (r"transformer\.blocks\.\d+\.ffn\.[02]", _QUANTISED),
    (r"transformer\.blocks\.\d+\.memory\.(decay\+beta|out_gate)", "gate of the memory, whose error the scan amplifies"),
    (r"transformer\.patch_embedding", "first layer"),
    (r"transformer\.head\.head", "last layer"),
    (r"decoder(\..+)?", "autoencoder"),
)


@dataclass(frozen=True)
class Linear:
    """One product with a constant weight."""

    name: str  # its module, e.g. "transformer.blocks.0.self_attn.q": unique over all engines
    engine: str
    node: str  # of the MatMul
    input: str  # activation; several linears may read the same
    weight: str  # initializer [K, N]
    shape: tuple[int, int]  # K, N
    bias_node: str | None  # the Add that alone reads the product
    bias: str | None  # its initializer [N]


@dataclass(frozen=True)
class Skipped:
    """A product with a constant weight that stays as it is."""

    name: str
    engine: str
    reason: str


class Found(NamedTuple):
    """What `find_linears` returns."""

    linears: list[Linear]
    skipped: list[Skipped]


@dataclass(frozen=True)
class Product:
    """One Attention node: two products of activations, query with key and probabilities with value."""

    name: str  # e.g. "transformer.blocks.0.self_attn.attention"
    engine: str
    node: str
    query: str  # activation [B, T, heads * d]
    key: str  # activation [B, S, heads * d]
    value: str  # activation [B, S, heads * d]


def find_linears(model: ModelProto, engine: str) -> Found:
    """What to quantise, and every other MatMul, Gemm and Conv with a constant weight, in the graph's order.

    Reads names and dims only: weights outside the file need not be loaded.
    """
    weights, reading = initializers(model), readers(model)
    nodes = _weighted(model)
    nameless = [node.name for node in nodes if not module_of(node)]
    linears: list[Linear] = []
    skipped: list[Skipped] = []
    for node in nodes:
        patches = engine == "step" and nameless == [node.name]
        name = PATCH_EMBEDDING if patches else module_of(node) or node.name
        reason = next((reason for pattern, reason in _TABLE if re.fullmatch(pattern, name)), "unknown")
        linear = _linear(node, name, engine, weights, reading.get(node.output[0], []))
        if linear and reason == _QUANTISED:
            linears.append(linear)
        else:
            form = f"got {node.op_type}, expected MatMul(x, W) with an fp32 initializer W [K, N]"
            skipped.append(Skipped(name, engine, reason or form))
    return Found(linears, skipped)


def find_products(model: ModelProto, engine: str) -> list[Product]:
    """The Attention nodes, in the graph's order: a block's first is over the window, its second over the prompt."""
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    total, seen = Counter(map(module_of, nodes)), Counter[str]()
    products = []
    for node in nodes:
        module = module_of(node)
        parts = [module or node.name]
        if total[module] == 2:
            parts.append("cross_attn" if seen[module] else "self_attn")
        elif total[module] > 1:
            parts.append(str(seen[module]))
        seen[module] += 1
        query, key, value = node.input[:3]
        products.append(Product(".".join([*parts, "attention"]), engine, node.name, query, key, value))
    return products


def _weighted(model: ModelProto) -> list[NodeProto]:
    constant, found = constants(model), []
    for node in model.graph.node:
        known = [name in constant for name in node.input[:2]]
        if node.op_type in _KINDS and any(known) and not all(known):
            found.append(node)
    return found


def _linear(
    node: NodeProto, name: str, engine: str, weights: Mapping[str, TensorProto], reading: list[NodeProto]
) -> Linear | None:
    weight = weights.get(node.input[1])
    if node.op_type != "MatMul" or weight is None or len(weight.dims) != 2 or weight.data_type != TensorProto.FLOAT:
        return None
    inputs, outputs = weight.dims
    bias_node = bias = None
    if len(reading) == 1 and reading[0].op_type == "Add":
        others = [other for other in reading[0].input if other in weights]
        if len(others) == 1 and list(weights[others[0]].dims) in ([outputs], [1, 1, outputs]):
            bias_node, bias = reading[0].name, others[0]
    return Linear(name, engine, node.name, node.input[0], weight.name, (inputs, outputs), bias_node, bias)
