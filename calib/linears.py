"""The products of a graph that can be quantised, by the module that each comes from, and why the others are not.

Which of them are, the plan says: `lower_precision.layers` of its manifest, patterns of modules, of which the first that
matches the whole name counts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from onnx import ModelProto, NodeProto, TensorProto

from videossm.calib.graph import constants, initializers, module_of, readers, values_by_name
from videossm.models import family
from videossm.runtime.errors import UserError
from videossm.runtime.manifest import Layers

CHANNEL_AXIS = {"MatMul": 1, "Conv": 0, "ConvTranspose": 1}  # of a weight's output channels
_KINDS = (*CHANNEL_AXIS, "Gemm")
_UNNAMED = "not named by the family"
_FORM = "expected a MatMul or a convolution of an activation [B, .., N] with an fp32 initializer"


class LayersError(UserError):
    """A pattern of the manifest that is no regular expression."""


@dataclass(frozen=True)
class Layer:
    """What can be quantised or not as a whole.

    `name`: its module, such as "blocks.0.attn.q". What comes later of the same module in that graph has its number
    behind it. Another engine's of the same name is the same layer, traced once more.
    """

    name: str
    engine: str
    node: str


@dataclass(frozen=True)
class Linear(Layer):
    """One product with a constant weight: a `MatMul`, or a convolution."""

    operator: str  # one of CHANNEL_AXIS
    input: str  # activation; several linears may read the same
    rank: int  # of the activation
    weight: str  # initializer
    shape: tuple[int, ...]  # of the weight: [K, N] of a MatMul
    bias_node: str | None  # of a MatMul: the Add that alone reads the product
    bias: str | None  # its initializer [N]

    @property
    def axis(self) -> int:
        """Of the weight's output channels."""
        return CHANNEL_AXIS[self.operator]

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def size(self) -> int:
        """Numbers of the weight."""
        return math.prod(self.shape)


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
class Product(Layer):
    """One Attention node: two products of activations, query with key and probabilities with value."""

    query: str  # activation [B, T, heads * d]
    key: str  # activation [B, S, heads * d]
    value: str  # activation [B, S, heads * d]


def find_linears(model: ModelProto, engine: str, layers: Sequence[Layers]) -> Found:
    """What to quantise, and every other MatMul, Gemm and convolution with a constant weight, in the graph's order.

    Reads names and shapes only: weights outside the file need not be loaded. Raises LayersError.
    """
    weights, reading, values = initializers(model), readers(model), values_by_name(model)
    reason, named = reasons_to_keep(layers), _Names()
    linears: list[Linear] = []
    skipped: list[Skipped] = []
    for node in _weighted(model):
        name = named(node)
        why = reason(module_of(node) or node.name)
        known = values.get(node.input[0])
        rank = len(known.type.tensor_type.shape.dim) if known is not None else 0
        linear = _linear(node, name, engine, rank, weights, reading.get(node.output[0], []))
        if why is None and linear is not None:
            linears.append(linear)
        else:
            skipped.append(Skipped(name, engine, why or f"got {node.op_type}, {_FORM}"))
    return Found(linears, skipped)


def find_products(model: ModelProto, engine: str, layers: Sequence[Layers]) -> list[Product]:
    """The Attention nodes that may be quantised, in the graph's order. Raises LayersError."""
    reason, named = reasons_to_keep(layers), _Names()
    products = []
    for node in model.graph.node:
        if node.op_type == "Attention":
            name = named(node)
            if reason(module_of(node) or node.name) is None:
                products.append(Product(name, engine, node.name, *node.input[:3]))
    return products


class _Names:
    """Names of nodes: that of the module, numbered where it has several; without a module that of the node."""

    def __init__(self) -> None:
        self._seen = Counter[str]()

    def __call__(self, node: NodeProto) -> str:
        module = module_of(node) or node.name
        self._seen[module] += 1
        return module if self._seen[module] == 1 else f"{module}.{self._seen[module]}"


def reasons_to_keep(layers: Sequence[Layers | family.Layers]) -> Callable[[str], str | None]:
    """Why the layer of a module stays as it is; None if it may be quantised."""
    compiled = []
    for index, entry in enumerate(layers):
        try:
            compiled.append((re.compile(entry.modules), entry.keep))
        except re.error as error:
            raise LayersError(
                f"lower_precision.layers.{index}.modules: got {entry.modules!r} ({error}), expected a regular "
                "expression; mend the family and export the plan again"
            ) from None
    return lambda module: next((keep for pattern, keep in compiled if pattern.fullmatch(module)), _UNNAMED)


def _weighted(model: ModelProto) -> list[NodeProto]:
    constant, found = constants(model), []
    for node in model.graph.node:
        known = [name in constant for name in node.input[:2]]
        if node.op_type in _KINDS and any(known) and not all(known):
            found.append(node)
    return found


def _linear(
    node: NodeProto, name: str, engine: str, rank: int, weights: Mapping[str, TensorProto], reading: list[NodeProto]
) -> Linear | None:
    """None for a form that is not quantised."""
    weight = weights.get(node.input[1])
    if node.op_type not in CHANNEL_AXIS or weight is None or weight.data_type != TensorProto.FLOAT or rank < 3:
        return None
    shape = tuple(weight.dims)
    bias_node = bias = None
    if node.op_type == "MatMul":
        if len(shape) != 2:
            return None
        bias_node, bias = _bias(shape[1], weights, reading)
    elif node.op_type == "ConvTranspose" and any(entry.name == "group" and entry.i != 1 for entry in node.attribute):
        return None  # its weight [C, M / groups, ..] has a channel of each group in one row
    return Linear(name, engine, node.name, node.op_type, node.input[0], rank, weight.name, shape, bias_node, bias)


def _bias(channels: int, weights: Mapping[str, TensorProto], reading: list[NodeProto]) -> tuple[str | None, str | None]:
    """The Add of a bias, if that alone reads the product, and the bias."""
    if len(reading) == 1 and reading[0].op_type == "Add":
        others = [other for other in reading[0].input if other in weights]
        if len(others) == 1 and list(weights[others[0]].dims) in ([channels], [1, 1, channels]):
            return reading[0].name, others[0]
    return None, None
