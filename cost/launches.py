"""What a backend starts on a device for a graph: an estimate by stated rules, those of one of two backends.

Of a launch are counted its FLOPs and the bytes that go through the device's memory: what it reads that it has not made
itself, each tensor once, and what it writes that others read. `docs/cost.md` has the rules in words, with an example.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from videossm.cost.counts import (
    ATTENTION,
    CONVOLUTION,
    HEAVY,
    MOVED,
    NORM,
    NOTHING,
    POINTWISE,
    PRODUCT,
    READS_A_PART,
    SCAN,
    attention_sizes,
    flops_of,
    is_masked,
    kind_of,
    tokens_of,
)
from videossm.cost.devices import TF32
from videossm.cost.graph import EngineGraph, Node, Tensor

HALF_BYTES = 2
SCORE_TRIPS = 4  # of scores that do not stay on the chip: written; read and written by the softmax; read
BIAS_TRIPS = 2  # of a mask that is made a bias: written, read
MASKED_RATE = 0.5  # of ONNX Runtime's kernel for attention with a bias, to its flash attention
BLOCK_TOKENS = {2: 32, 4: 16}  # that a scan takes at once, by the bytes of its numbers; see docs/kernels.md

Groups = list[list[Node]]


@dataclass(frozen=True)
class Launch:
    """One kernel, or `count` one after the other where a Scan repeats it.

    `dtype`: in which its products multiply. `own_bytes`: of `bytes`, weights and the engine's inputs and outputs, which
    no backend can do without. `serial`: blocks of tokens that a scan takes one after the other. `rate`: to the device's
    rate of products.
    """

    kind: str
    what: str
    dtype: str
    flops: int
    bytes: int
    own_bytes: int
    count: int = 1
    serial: int = 0
    rate: float = 1.0


class Flow:
    """Who makes and who reads a tensor of a graph, seen through nodes that are free."""

    def __init__(self, graph: EngineGraph) -> None:
        self.nodes = graph.nodes
        self.maker: dict[str, int] = {}
        self.readers: dict[str, set[int]] = defaultdict(set)
        self._origin: dict[str, str] = {}
        for index, node in enumerate(graph.nodes):
            given = [tensor for tensor in node.inputs if tensor is not None]
            if kind_of(node) == NOTHING and given:
                self._origin[node.output.name] = self.origin(given[0])
                continue
            for tensor in given:
                self.readers[self.origin(tensor)].add(index)
            self.maker.update((tensor.name, index) for tensor in node.outputs if tensor is not None)
        self.entering = {tensor.name for tensor in graph.inputs}
        self.in_place = graph.in_place
        self.leaving = {self.origin(tensor) for tensor in graph.outputs}

    def origin(self, tensor: Tensor) -> str:
        """The tensor whose bytes it is."""
        return self._origin.get(tensor.name, tensor.name)

    def makers(self, node: Node) -> list[int]:
        """The nodes that made what `node` reads."""
        names = [self.origin(tensor) for tensor in node.inputs if tensor is not None]
        return [self.maker[name] for name in names if name in self.maker]


def single_nodes(flow: Flow) -> Groups:
    """ONNX Runtime: a launch for every node that is not free; what it fuses is not counted."""
    return [[node] for node in flow.nodes if kind_of(node) != NOTHING]


def fused_nodes(flow: Flow) -> Groups:
    """TensorRT: a launch for each product, convolution, attention and scan, with the weights that are dequantised for
    it and the element-wise nodes right behind it; one for each part that is written in place; and one for all nodes
    between these that hang together."""
    level = _levels(flow)
    along = _prologues(flow) | _epilogues(flow, level)
    older: dict[int, int] = {}  # a node that hangs together with it and came before; the first of all is its own

    def first(index: int) -> int:
        while older[index] != index:
            older[index] = index = older[older[index]]
        return index

    for index, node in enumerate(flow.nodes):
        if kind_of(node) in (*HEAVY, NOTHING) or index in along or node.output.name in flow.in_place:
            continue
        older[index] = index
        for maker in flow.makers(node):
            if maker in older and level[maker] == level[index]:
                one, other = sorted((first(maker), first(index)))
                older[other] = one
    groups: dict[int, list[Node]] = defaultdict(list)
    for index, node in enumerate(flow.nodes):
        if kind_of(node) != NOTHING:
            groups[along.get(index, first(index) if index in older else index)].append(node)
    return list(groups.values())


def _levels(flow: Flow) -> list[int]:
    """Of each node, how many products and the like are on the longest way to its outputs. No way between two light
    nodes of one level leads through a product, so that they can be one launch."""
    level: list[int] = []
    for node in flow.nodes:
        before = max((level[maker] for maker in flow.makers(node)), default=0)
        level.append(before + (kind_of(node) in HEAVY))
    return level


def _prologues(flow: Flow) -> dict[int, int]:
    """Nodes that dequantise for one product, and that product."""
    found = {}
    for index, node in enumerate(flow.nodes):
        if node.operator == "DequantizeLinear":
            readers = flow.readers[node.output.name]
            if len(readers) == 1 and kind_of(flow.nodes[min(readers)]) in HEAVY:
                found[index] = min(readers)
    return found


def _epilogues(flow: Flow, level: Sequence[int]) -> dict[int, int]:
    """The chain of element-wise nodes behind a product, and that product: while nothing else reads what one makes."""
    along: dict[int, int] = {}
    for index, node in enumerate(flow.nodes):
        if kind_of(node) not in HEAVY or kind_of(node) == SCAN:
            continue
        last = index
        while True:
            tensor = flow.nodes[last].output
            readers = flow.readers[tensor.name]
            if tensor.name in flow.leaving or len(readers) != 1:
                break
            (reader,) = readers
            follower = flow.nodes[reader]
            others = [maker for maker in flow.makers(follower) if maker != last]
            is_ready = all(level[other] < level[index] for other in others)
            if kind_of(follower) != POINTWISE or follower.output.size != tensor.size or not is_ready:
                break
            along[reader], last = index, reader
    return along


@dataclass(frozen=True)
class Rules:
    """A backend's: how nodes are grouped, whether its products take what is dequantised as it was, whether those in
    fp32 are TF32's where a plan allows it, and what attention costs beside reading and writing its tensors: bytes, and
    its rate to a product's."""

    groups: Callable[[Flow], Groups]
    multiplies_quantized: bool
    has_tf32: bool
    attention: Callable[[Node], tuple[int, float]]


def _on_tensorrt(node: Node) -> tuple[int, float]:
    """In 16 bits one fused kernel, masked or not; in fp32 its scores go through memory."""
    return (0, 1.0) if node.output.item_bytes == HALF_BYTES else (SCORE_TRIPS * _score_bytes(node), 1.0)


def _on_onnxruntime(node: Node) -> tuple[int, float]:
    """In 16 bits flash attention, but only without a mask: that becomes a bias for another kernel."""
    if node.output.item_bytes != HALF_BYTES:
        return SCORE_TRIPS * _score_bytes(node), 1.0
    if not is_masked(node):
        return 0, 1.0
    mask = node.inputs[3]
    assert mask is not None
    return BIAS_TRIPS * HALF_BYTES * mask.size, MASKED_RATE


def _score_bytes(node: Node) -> int:
    batch, heads, queries, keys, _ = attention_sizes(node)
    return batch * heads * queries * keys * node.output.item_bytes


RULES = {
    "tensorrt": Rules(fused_nodes, True, True, _on_tensorrt),
    "onnxruntime": Rules(single_nodes, False, False, _on_onnxruntime),
}


def launches(graph: EngineGraph, rules: Rules, tf32: bool = False) -> list[Launch]:
    """`tf32`: whether the plan lets fp32 products of this engine be TF32's."""
    flow = Flow(graph)
    return list(chain.from_iterable(_launches(flow, group, rules, tf32) for group in rules.groups(flow)))


def activation_bytes(graph: EngineGraph, rules: Rules) -> int:
    """The most that lies between launches at any time, if memory is used again at once."""
    flow = Flow(graph)
    groups = rules.groups(flow)
    place = {id(node): index for index, group in enumerate(groups) for node in group}
    change = [0] * (len(groups) + 1)
    for group in groups:
        for tensor in _written(flow, group):
            if tensor.name in flow.leaving:
                continue
            change[place[id(group[-1])]] += tensor.size_bytes
            change[1 + max(place[id(flow.nodes[reader])] for reader in flow.readers[tensor.name])] -= tensor.size_bytes
    most = now = 0
    for size in change:
        now += size
        most = max(most, now)
    return most


def _launches(flow: Flow, group: Sequence[Node], rules: Rules, tf32: bool) -> Iterator[Launch]:
    """One, or for a Scan those of its body."""
    main = max(group, key=lambda node: _weight(kind_of(node)))
    if main.body is not None:
        for inner in launches(main.body, rules, tf32):
            size, count = main.times * inner.bytes, main.times * inner.count
            yield replace(inner, kind=SCAN, flops=main.times * inner.flops, bytes=size, own_bytes=0, count=count)
        return
    read = _read(flow, group)
    written = {each.name: flow.in_place.get(each.name, each.size_bytes) for each in _written(flow, group)}
    size = sum(read.values()) + sum(written.values())
    own = sum(of for name, of in read.items() if name not in flow.maker)
    own += sum(of for name, of in written.items() if name in flow.leaving)
    kind = kind_of(main)
    extra, rate = rules.attention(main) if kind == ATTENTION else (0, 1.0)
    serial = 0
    if kind == SCAN:
        first = main.inputs[0]
        serial = -(-tokens_of(main) // BLOCK_TOKENS[first.item_bytes if first is not None else 4])
    flops = flops_of(main) if kind in HEAVY else sum(flops_of(node) for node in group)
    dtype = _dtype(flow, main, rules.multiplies_quantized)
    if dtype == "float32" and kind in (PRODUCT, CONVOLUTION, ATTENTION) and rules.has_tf32 and tf32:
        dtype = TF32
    yield Launch(kind, main.operator, dtype, flops, size + extra, own, serial=serial, rate=rate)


def _read(flow: Flow, group: Sequence[Node]) -> dict[str, int]:
    """Bytes of each tensor that the group reads and has not made."""
    made = {tensor.name for node in group for tensor in node.outputs if tensor is not None}
    found: dict[str, int] = {}
    for node in group:
        for position, tensor in enumerate(node.inputs):
            if tensor is None or flow.origin(tensor) in made:
                continue
            if position == 0 and node.output.name in flow.in_place:
                continue  # it stays where it is
            is_part = position == 0 and node.operator in READS_A_PART
            size = min(tensor.size_bytes, node.output.size_bytes) if is_part else tensor.size_bytes
            name = flow.origin(tensor)
            found[name] = max(size, found.get(name, 0))
    return found


def _written(flow: Flow, group: Sequence[Node]) -> list[Tensor]:
    """What the group makes and others read."""
    inside = {id(node) for node in group}
    return [
        tensor
        for node in group
        for tensor in node.outputs
        if tensor is not None
        and (
            tensor.name in flow.leaving
            or any(id(flow.nodes[reader]) not in inside for reader in flow.readers[tensor.name])
        )
    ]


def _dtype(flow: Flow, node: Node, multiplies_quantized: bool) -> str:
    """In which a node multiplies: with quantised operands theirs, if the backend has such products."""
    if kind_of(node) == PRODUCT and multiplies_quantized:
        found = []
        for maker in flow.makers(node):
            source = flow.nodes[maker]
            stored = source.inputs[0]
            if source.operator == "DequantizeLinear" and stored is not None:
                found.append(stored.dtype)
        if len(found) == 2:
            return found[0]
    return node.output.dtype


def _weight(kind: str) -> int:
    """Of two kinds in one launch the later one names it."""
    return (NOTHING, MOVED, POINTWISE, NORM, *HEAVY).index(kind)
