"""An fp32 engine to a strongly typed half-precision one, as TensorRT takes it: every precision stands in the graph.

    before  fp32 throughout
    after   products and what lies between them in fp16 or bf16, islands in fp32, a Cast where the two meet;
            states in half where the plan says that they may be, which halves the memory of a window

Half are matrix products, convolutions, attention, rotary embeddings (their tables are cast when computed), look-ups,
and the element-wise work between those. How attention computes its softmax is the backend's affair: TensorRT refuses
`softmax_precision`.

Islands, and what each is worth: the error of what a pass of the trained `shapes` plan makes of the sample, by
`videossm.calib.emulate`, mean over passes of the chunks 0, 4 and 30.

| | bf16 | fp16 |
|---|---|---|
| as it is, mean of two rollouts | 4.5e-3 | 5.2e-4 |
| before the products of a block were merged; all below compare with this | 5.4e-3 | 7.0e-4 |
| rotary angles in half, positions from 1000 | 2.8e-1 | 2.3e-2 |
| residual stream in half; Wan2.1 has it in fp32 too | 7.5e-3 | 9.5e-4 |
| norms' outputs and their modulation in half | 7.1e-3 | 9.9e-4 |
| head in half | 6.9e-3 | 8.4e-4 |
| products that make the gates in half: error of the decay | 1.2e-2, not 3.3e-3 | 9.8e-4, not 4.1e-4 |

A pass does not show what a long rollout adds up. So more is fp32: what the plan names, modules (`fp32_modules`, by a
pattern of some parts of the module's name) and whole engines (`fp32_engines`, but for their states in half); products
that read a state in fp32; the table of what depends on a pass's scalars alone; and the inside of norms (between casts:
with `stash_type` in half TensorRT rounds twice). Pixels come out of fp32 too: bf16 tells 128 from 129 and no more.

The type of a node: that of its operator or module, where those say it. Any other is fp32 if an input of it is, and also
if nothing but fp32 reads it; what only moves elements takes the type that its readers want, if they agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from videossm.calib.graph import inferred_values, module_of
from videossm.runtime.errors import UserError
from videossm.runtime.manifest import Manifest, State, state_read

FP32: int = TensorProto.FLOAT
ELEMENT: dict[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
SUFFIX = {FP32: "fp32", **{element: precision for precision, element in ELEMENT.items()}}
DTYPE: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}

PRODUCTS = frozenset({"Attention", "Conv", "Gather", "Gemm", "MatMul", "RotaryEmbedding"})
ISLANDS = frozenset(
    {
        "Cos",
        "Exp",
        "Floor",
        "GroupNormalization",
        "LayerNormalization",
        "Log",
        "RMSNormalization",
        "Round",
        "Sin",
        "Softplus",
    }
)
TABLES = "levels"  # first part of the module of what `videossm.export` looks up by a pass's scalar
MOVEMENTS = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


class HalfError(UserError):
    """A model that the precision cannot hold."""


def to_half(model: ModelProto, engine: str, manifest: Manifest, precision: str) -> ModelProto:
    """The typed half graph of an fp32 engine, which is left as it is.

    Args:
        model: with static shapes; its weights are in it, not beside it.
        engine: its name in the manifest.
        precision: "fp16" or "bf16".

    Raises HalfError for a weight beyond fp16's range, or a pattern of modules that is no regular expression.
    """
    return _Writer(model, _Types(model, engine, manifest, ELEMENT[precision])).write()


class _Types:
    """Which tensors are floating, and the element type that each node computes in."""

    def __init__(self, model: ModelProto, engine: str, manifest: Manifest, half: int) -> None:
        graph = model.graph
        self.half = half
        self._states = _states(manifest, engine)
        self._in_fp32 = in_fp32(manifest.lower_precision.fp32_modules)
        self.weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == FP32}
        self.values = inferred_values(model)
        floats = {name for name, value in self.values.items() if value.type.tensor_type.elem_type == FP32}
        self.floats = self.weights.keys() | floats
        if engine in manifest.lower_precision.fp32_engines:
            self.of_node = [FP32] * len(graph.node)
        else:
            self.of_node = self._forward(graph)
            self._backward(graph)

    def outside(self, name: str) -> int:
        """Of a floating input or output of the graph, by its name."""
        state = self._states.get(name)
        return self.half if state is not None and state.half else FP32

    def anchor(self, node: NodeProto) -> int | None:
        """The type that an operator or module has wherever it stands; None where the neighbours decide."""
        if node.op_type in ISLANDS:
            return FP32
        if node.op_type not in PRODUCTS:
            return None
        reads_fp32 = any(name in self._states and self.outside(name) == FP32 for name in node.input)
        return FP32 if reads_fp32 or self._in_fp32(module_of(node)) else self.half

    def _forward(self, graph: GraphProto) -> list[int]:
        """Anchors by operator and module; all others are fp32 where an input is."""
        of_tensor = {value.name: self.outside(value.name) for value in graph.input if value.name in self.floats}
        of_node = []
        for node in graph.node:
            element = self.anchor(node)
            if element is None:
                read = [name for name in node.input if name in self.floats]
                computed = [of_tensor[name] for name in read if name not in self.weights]
                is_source = not read  # of floats: a position that is cast, for instance
                element = FP32 if is_source or FP32 in computed else self.half
            of_tensor.update((name, element) for name in node.output if name in self.floats)
            of_node.append(element)
        return of_node

    def _backward(self, graph: GraphProto) -> None:
        """What all readers of a node want, where that costs nothing: a movement, or a wider type."""
        wanted = {value.name: {self.outside(value.name)} for value in graph.output if value.name in self.floats}
        for index in reversed(range(len(graph.node))):
            node = graph.node[index]
            readers: set[int] = set().union(*(wanted.get(name, set()) for name in node.output))
            if len(readers) == 1 and self.anchor(node) is None:
                (element,) = readers
                if element == FP32 or node.op_type in MOVEMENTS:
                    self.of_node[index] = element
            for name in node.input:
                if name in self.floats:
                    wanted.setdefault(name, set()).add(self.of_node[index])


def _states(manifest: Manifest, engine: str) -> dict[str, State]:
    """What states the inputs and outputs of an engine are, by the tensor's name."""
    spec = manifest.engines[engine]
    ends = [(tensor.name, tensor.source) for tensor in spec.inputs]
    ends += [(tensor.name, tensor.target) for tensor in spec.outputs]
    read = {name: state_read(end) for name, end in ends}
    return {name: manifest.state[state] for name, state in read.items() if state is not None}


def in_fp32(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a module, by its name, is one that stays fp32, or in one. Raises HalfError."""
    compiled = []
    for index, pattern in enumerate(patterns):
        try:
            compiled.append(re.compile(rf"(?:^|\.)(?:{pattern})(?:\.|$)"))
        except re.error as error:
            raise HalfError(
                f"lower_precision.fp32_modules.{index}: got {pattern!r} ({error}), expected a regular expression; "
                "mend the family and export the plan again"
            ) from None
    return lambda module: module.partition(".")[0] == TABLES or any(each.search(module) for each in compiled)


class _Writer:
    """Writes the graph anew: a tensor is cast once to each type that something reads it in."""

    def __init__(self, model: ModelProto, types: _Types) -> None:
        self._model, self._graph, self._types = model, model.graph, types
        self._nodes: list[NodeProto] = []
        self._names: dict[tuple[str, int], str] = {}  # tensor and type -> its name in the new graph
        self._weights: dict[str, TensorProto] = {}

    def write(self) -> ModelProto:
        self._names.update(((value.name, self._outside(value)), value.name) for value in self._graph.input)
        for node, element in zip(self._graph.node, self._types.of_node, strict=True):
            self._write_node(node, element)
        model = ModelProto(ir_version=self._model.ir_version, producer_name=self._model.producer_name)
        model.opset_import.extend(self._model.opset_import)
        graph = model.graph
        graph.name = self._graph.name
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._read_weights())
        graph.input.extend(_typed(value, value.name, self._outside(value)) for value in self._graph.input)
        graph.output.extend(_typed(value, value.name, self._outside(value)) for value in self._graph.output)
        graph.value_info.extend(self._inner_values())
        return model

    def _write_node(self, node: NodeProto, element: int) -> None:
        inputs = [self._read(name, element) for name in node.input]
        self._nodes.append(NodeProto())
        written = self._nodes[-1]
        written.CopyFrom(node)
        written.input[:] = inputs
        outputs = {value.name: self._outside(value) for value in self._graph.output}
        for i, name in enumerate(node.output):
            if name in self._types.floats:
                self._names[name, element] = name
                if outputs.get(name, element) != element:
                    written.output[i] = self._names[name, element] = f"{name}.{SUFFIX[element]}"
                    self._cast(name, written.output[i], name, outputs[name])

    def _read(self, name: str, element: int) -> str:
        """The name under which `name` is read as `element`."""
        if name not in self._types.floats:
            return name
        if name in self._types.weights:
            return self._weight(name, element)
        if (name, element) not in self._names:
            (source,) = (self._names[key] for key in ((name, FP32), (name, self._types.half)) if key in self._names)
            self._cast(name, source, f"{name}.{SUFFIX[element]}", element)
        return self._names[name, element]

    def _cast(self, name: str, source: str, target: str, element: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=target, to=element))
        self._names[name, element] = target

    def _weight(self, name: str, element: int) -> str:
        written = name if element == FP32 else f"{name}.{SUFFIX[element]}"
        if written not in self._weights:
            tensor = self._types.weights[name]
            self._weights[written] = tensor if element == FP32 else _rounded(tensor, written, element)
        return written

    def _read_weights(self) -> Iterable[TensorProto]:
        read = {name for node in self._nodes for name in node.input}
        others = (tensor for tensor in self._graph.initializer if tensor.data_type != FP32 and tensor.name in read)
        return [*others, *self._weights.values()]

    def _inner_values(self) -> Iterable[ValueInfoProto]:
        """Types and shapes of what lies between inputs and outputs."""
        ends = {value.name for value in (*self._graph.input, *self._graph.output)}
        for (name, element), written in self._names.items():
            if written not in ends:
                yield _typed(self._types.values[name], written, element)
        others = self._types.values.keys() - self._types.floats - ends
        yield from (self._types.values[name] for name in sorted(others))

    def _outside(self, value: ValueInfoProto) -> int:
        floating = value.name in self._types.floats
        return self._types.outside(value.name) if floating else value.type.tensor_type.elem_type


def _typed(value: ValueInfoProto, name: str, element: int) -> ValueInfoProto:
    typed = ValueInfoProto()
    typed.CopyFrom(value)
    typed.name = name
    typed.type.tensor_type.elem_type = element
    return typed


def _rounded(tensor: TensorProto, name: str, element: int) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):  # told below
        rounded = values.astype(DTYPE[element])
    if np.isinf(rounded).sum() > np.isinf(values).sum():
        largest = float(np.abs(values).max())
        raise HalfError(f"{tensor.name}: got a weight of {largest:.3g}, expected at most 65504 in fp16; export in bf16")
    return numpy_helper.from_array(rounded, name)
