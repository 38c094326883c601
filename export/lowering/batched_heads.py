"""Scans that do not wait for each other become one, with the heads of all.

    before  last_i = videossm::GatedDeltaScan(Reshape(key_i), .., beta_i, state_i)      for every layer i; of H heads
    after   last_0, .., last_n = Split(videossm::GatedDeltaScan(Reshape(Concat(key_0, .., key_n)), ..,
                Concat(beta_0, .., beta_n), Concat(state_0, .., state_n)))              of n H heads

A scan is a chain of steps, one behind the other: on a GPU, and with standard operators anywhere, the chains of all
layers of a memory take the time of one. A CPU has cores for one layer's heads, and pays for joining the tensors: its
own lowering does without, and `contrib`, which runs on both, has large scans batched alone.

Constraints: static shapes; scans agree in attributes, types, shapes and in which outputs are read; as many scans lie
before each of them, so that none depends on another; no node has a graph inside, which might read what a scan makes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from videossm.export.lowering.graph import ScanNode, TensorType, find_scans
from videossm.export.schemas import DOMAIN, GATED_DELTA_SCAN

INPUT_AXES = {"query": 2, "key": 2, "value": 2, "decay": 2, "beta": 2, "state": 1}  # of the heads
VALUE, STATE = 2, 5
OUTPUTS = (VALUE, STATE)  # the inputs that output and last_state are like


def batch_heads(model: ModelProto, least_values: int = 0) -> None:
    """Batches every group of two scans or more, in `model` itself. Raises LoweringError for a scan without shapes.

    `least_values`: numbers in the values of a scan, below which it stays apart.
    """
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        return
    before = _scans_before(model)
    groups: dict[tuple[object, ...], list[ScanNode]] = defaultdict(list)
    for scan in find_scans(model, [GATED_DELTA_SCAN]):
        value = scan.inputs[VALUE]
        if value is None or prod(value.shape) < least_values:
            continue
        attributes = tuple(scan.attributes().items())
        groups[before[scan.node.output[-1]], attributes, scan.inputs, scan.wanted].append(scan)
    for scans in groups.values():
        if len(scans) > 1:
            _Batch(model, scans).write()


def _scans_before(model: ModelProto) -> dict[str, int]:
    """By tensor: how many scans lie one behind the other on the longest way to it."""
    found: dict[str, int] = defaultdict(int)
    for node in model.graph.node:
        length = max((found[name] for name in node.input if name), default=0)
        for name in node.output:
            found[name] = length + (node.domain == DOMAIN)
    return found


class _Batch:
    """Scans of one group, on their way into one."""

    def __init__(self, model: ModelProto, scans: Sequence[ScanNode]) -> None:
        self._model, self._scans = model, scans
        self._prefix = f"{scans[0].prefix}batched."
        self._made_by = {name: node for node in model.graph.node for name in node.output}
        self._sizes = {
            value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
            for values in (model.graph.input, model.graph.value_info)
            for value in values
        }
        self._joined: dict[tuple[int | str, ...], str] = {}  # by axis and names
        self._nodes: list[NodeProto] = []

    def write(self) -> None:
        scans, graph = self._scans, self._model.graph
        first = scans[0].node
        inputs = [self._join(place, label) for place, label in enumerate(INPUT_AXES)]
        output, last = (f"{self._prefix}{name}" for name in ("output", "last_state"))
        outputs = [output if scans[0].wanted[0] else "", last]
        batched = self._add(GATED_DELTA_SCAN, inputs, outputs, domain=DOMAIN)
        batched.attribute.extend(first.attribute)
        batched.metadata_props.extend(first.metadata_props)
        for place, like in enumerate(OUTPUTS):
            if scans[0].wanted[place]:
                kind, axis, whole = self._whole(like)
                self._describe(outputs[place], kind.element, whole)
                parts = [scan.node.output[place] for scan in scans]
                self._add("Split", [outputs[place]], parts, axis=axis, num_outputs=len(scans))
        old = {scan.node.output[-1] for scan in scans}
        kept = [node for node in graph.node if node.output[-1] not in old]
        known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
        known |= {tensor.values.name for tensor in graph.sparse_initializer}
        ordered = _in_order([*kept, *self._nodes], known)
        read = {name for node in ordered for name in node.input} | {value.name for value in graph.output}
        unread = {name for _, *names in self._joined for name in names} - read  # what was cut by itself
        del graph.node[:]
        graph.node.extend(node for node in ordered if not unread.intersection(node.output))

    def _whole(self, place: int) -> tuple[TensorType, int, list[int]]:
        """Of an input: the type of one scan's, the axis of its heads, and the shape of all scans' together."""
        kind, axis = self._scans[0].inputs[place], list(INPUT_AXES.values())[place]
        assert kind is not None, "no input of this scan is optional"
        count = len(self._scans)
        return kind, axis, [size * (count if each == axis else 1) for each, size in enumerate(kind.shape)]

    def _join(self, place: int, label: str) -> str:
        """The scans' inputs side by side: before a Reshape cuts them into heads, where one does."""
        names = [scan.node.input[place] for scan in self._scans]
        kind, axis, whole = self._whole(place)
        key = (axis, *names)
        if key in self._joined:
            return self._joined[key]
        uncut = (*kind.shape[:axis], prod(kind.shape[axis:]))
        cuts = [self._made_by[name] for name in names if name in self._made_by]
        packed = [cut.input[0] for cut in cuts if cut.op_type == "Reshape" and self._sizes.get(cut.input[0]) == uncut]
        joined = self._prefix + label
        if len(packed) < len(names):
            self._add("Concat", names, [joined], axis=axis)
        else:
            flat, sizes = f"{joined}_packed", f"{joined}_shape"
            self._add("Concat", packed, [flat], axis=axis)
            self._describe(flat, kind.element, [*uncut[:-1], uncut[-1] * len(names)])
            self._model.graph.initializer.append(helper.make_tensor(sizes, TensorProto.INT64, [len(whole)], whole))
            self._add("Reshape", [flat, sizes], [joined])
        self._describe(joined, kind.element, whole)
        self._joined[key] = joined
        return joined

    def _describe(self, name: str, element: int, shape: list[int]) -> None:
        self._model.graph.value_info.append(helper.make_tensor_value_info(name, element, shape))

    def _add(self, kind: str, inputs: Iterable[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
        name = f"{self._prefix}node{len(self._nodes)}"
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
