"""Scans that do not wait for each other become one, with the heads of all.

    before  last_i = videossm::GatedDeltaScan(Reshape(key_i), .., beta_i, state_i)      for every layer i; of H heads
    after   last_0, .., last_n = Split(videossm::GatedDeltaScan(Reshape(Concat(key_0, .., key_n)), ..,
                Concat(beta_0, .., beta_n), Concat(state_0, .., state_n)))              of n H heads

A scan is a chain of steps, one behind the other: on a GPU, and with standard operators anywhere, the chains of all
layers of a memory take the time of one. Lowerings for a CPU alone do without, as its cores are busy with one layer's
heads, and joining the tensors costs.

Constraints: static shapes; scans agree in attributes, types, shapes and in which outputs are read; as many scans lie
before each of them, so that none depends on another; no node has a graph inside, which might read what a scan makes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import prod

from onnx import ModelProto, NodeProto, TensorProto, helper

from videossm.export.lowering.graph import ScanNode, TensorType, find_scans
from videossm.export.schemas import DOMAIN, GATED_DELTA_SCAN

INPUT_AXES = {"query": 2, "key": 2, "value": 2, "decay": 2, "beta": 2, "state": 1}  # of the heads
OUTPUT_AXES = (2, 1)


def batch_heads(model: ModelProto) -> None:
    """Batches every group of two scans or more, in `model` itself. Raises LoweringError for a scan without shapes."""
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        return
    before = _scans_before(model)
    groups: dict[tuple[object, ...], list[ScanNode]] = defaultdict(list)
    for scan in find_scans(model, [GATED_DELTA_SCAN]):
        attributes = tuple(scan.attributes().items())
        groups[before[scan.node.output[-1]], attributes, scan.inputs, scan.wanted].append(scan)
    for scans in groups.values():
        if len(scans) > 1:
            _Batch(model, scans).write()


def _scans_before(model: ModelProto) -> dict[str, int]:
    """By tensor: how many scans lie one behind the other on the longest way to it."""
    found: dict[str, int] = defaultdict(int)
    for node in model.graph.node:
        length = max((found[name] for name in node.input), default=0)
        for name in node.output:
            found[name] = length + (node.domain == DOMAIN)
    return found


class _Batch:
    """Scans of one group, on their way into one."""

    def __init__(self, model: ModelProto, scans: Sequence[ScanNode]) -> None:
        self._model, self._scans = model, scans
        self._prefix = f"{scans[0].prefix}batched."
        self._made_by = {name: node for node in model.graph.node for name in node.output}
        self._shapes = {
            value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
            for values in (model.graph.input, model.graph.value_info)
            for value in values
        }
        self._joined: dict[tuple[str, ...], str] = {}
        self._nodes: list[NodeProto] = []

    def write(self) -> None:
        scans, graph = self._scans, self._model.graph
        first = scans[0].node
        inputs = []
        for place, (label, axis) in enumerate(INPUT_AXES.items()):
            kind = scans[0].inputs[place]
            assert kind is not None, f"{label}: no input of this scan is optional"
            inputs.append(self._join([scan.node.input[place] for scan in scans], label, axis, kind))
        outputs = [f"{self._prefix}output{place}" if wanted else "" for place, wanted in enumerate(scans[0].wanted)]
        batched = self._add(GATED_DELTA_SCAN, inputs, outputs, domain=DOMAIN)
        batched.attribute.extend(first.attribute)
        batched.metadata_props.extend(first.metadata_props)
        for place, axis in enumerate(OUTPUT_AXES):
            if outputs[place]:
                parts = [scan.node.output[place] for scan in scans]
                self._add("Split", [outputs[place]], parts, axis=axis, num_outputs=len(scans))
        old = {scan.node.output[-1] for scan in scans}
        kept = [node for node in graph.node if node.output[-1] not in old]
        known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
        ordered = _in_order([*kept, *self._nodes], known)
        read = {name for node in ordered for name in node.input} | {value.name for value in graph.output}
        left = {name for names in self._joined for name in names} - read  # of Reshape nodes that nothing reads any more
        del graph.node[:]
        graph.node.extend(node for node in ordered if not left.intersection(node.output))

    def _join(self, names: list[str], label: str, axis: int, kind: TensorType) -> str:
        """`names` side by side along `axis`: before a Reshape cuts them into heads, where one does."""
        if tuple(names) in self._joined:
            return self._joined[tuple(names)]
        whole = [size * (len(names) if place == axis else 1) for place, size in enumerate(kind.shape)]
        made = [self._made_by[name] for name in names if name in self._made_by]
        uncut = (*kind.shape[:axis], prod(kind.shape[axis:]))
        packed = [
            node.input[0] for node in made if node.op_type == "Reshape" and self._shapes.get(node.input[0]) == uncut
        ]
        if len(packed) < len(names):
            (joined,) = self._add("Concat", names, [self._prefix + label], axis=axis).output
        else:
            (flat,) = self._add("Concat", packed, [f"{self._prefix}{label}_packed"], axis=axis).output
            sizes = f"{self._prefix}{label}_shape"
            self._model.graph.initializer.append(helper.make_tensor(sizes, TensorProto.INT64, [len(whole)], whole))
            (joined,) = self._add("Reshape", [flat, sizes], [self._prefix + label]).output
        self._model.graph.value_info.append(helper.make_tensor_value_info(joined, kind.element, whole))
        self._joined[tuple(names)] = joined
        return joined

    def _add(self, kind: str, inputs: Iterable[str], outputs: Sequence[str], **attributes: object) -> NodeProto:
        name = next(filter(None, outputs))
        self._nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=name, **attributes))
        return self._nodes[-1]


def _in_order(nodes: Iterable[NodeProto], known: set[str]) -> list[NodeProto]:
    """Each node behind those that it reads from, else as they are."""
    ordered, waiting = [], list(nodes)
    while waiting:
        later = []
        for node in waiting:
            if known.issuperset(node.input):
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        assert len(later) < len(waiting), "a graph has no cycles"
        waiting = later
    return ordered
