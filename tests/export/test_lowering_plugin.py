"""Scans lowered for TensorRT: the nodes that its parser will find, run as the plugins define them.

What the plugins compute from such nodes is tested in tests/plugins_trt; here ONNX's reference evaluator does, by an
implementation that takes what a plugin takes and reads what a plugin reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from videossm.export import schemas
from videossm.export.lowering import LoweringError, lower
from videossm.export.lowering.plugin import lower_plugin
from videossm.models.scans.gated_delta import gated_delta_reference
from videossm.models.scans.selective_scan import selective_scan_reference

FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
OPSET = 24
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "GatedDeltaScan": {
        "query": (2, 7, 3, 4),
        "key": (2, 7, 3, 4),
        "value": (2, 7, 3, 5),
        "decay": (2, 7, 3),
        "beta": (2, 7, 3),
        "state": (2, 3, 4, 5),
    },
    "SelectiveScan": {
        "u": (2, 6, 7),
        "delta": (2, 6, 7),
        "A": (6, 4),
        "B": (2, 4, 7),
        "C": (2, 4, 7),
        "state": (2, 6, 4),
        "D": (6,),
        "z": (2, 6, 7),
        "delta_bias": (6,),
    },
}
ATTRIBUTES: dict[str, dict[str, Any]] = {"GatedDeltaScan": {"scale": 0.5}, "SelectiveScan": {"delta_softplus": 1}}
OPTIONAL = ("D", "z", "delta_bias")
TOLERANCE = {FLOAT: 1e-5, HALF: 1e-3}  # relative error in the Frobenius norm, by the output's type


def graph(
    kind: str, elements: Mapping[str, int] | None = None, left_out: tuple[str, ...] = (), read: tuple[int, ...] = (0, 1)
) -> ModelProto:
    """One scan of fp32 but for `elements`; `read`: which of its outputs are the graph's."""
    schema = onnx.defs.get_schema(kind, schemas.VERSION, schemas.DOMAIN)
    elements = {name: FLOAT for name in SHAPES[kind]} | dict(elements or {})
    names = ["" if name in left_out else name for name in SHAPES[kind]]
    while not names[-1]:
        names.pop()
    node = helper.make_node(kind, names, ["output", "last"], "scan", domain=schemas.DOMAIN, **ATTRIBUTES[kind])
    inputs = [helper.make_tensor_value_info(name, elements[name], SHAPES[kind][name]) for name in names if name]
    like = (("value", "state") if kind == "GatedDeltaScan" else ("u", "state"))[: len(schema.outputs)]
    results = [helper.make_tensor_value_info(node.output[i], elements[like[i]], SHAPES[kind][like[i]]) for i in read]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(schemas.DOMAIN, schemas.VERSION)]
    model = helper.make_model(helper.make_graph([node], "scan", inputs, results), opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def inputs_of(model: ModelProto) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    values = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        x = random.standard_normal([dim.dim_value for dim in kind.shape.dim])
        x = -np.abs(x) if value.name in ("A", "decay") else np.abs(x) if value.name in ("beta", "delta") else x
        x = x / 4 if value.name in ("key", "beta") else x
        values[value.name] = x.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return values


def tensors(values: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value.astype(np.float64)) for name, value in values.items()}


class GatedDeltaScan(OpRun):
    """The plugin's contract: activations of one type, all else fp32."""

    op_domain = schemas.DOMAIN

    def _run(self, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray | None, np.ndarray]:
        query, key, value, *others = inputs
        assert query.dtype == key.dtype == value.dtype, "activations of several types"
        assert all(other.dtype == np.float32 for other in others), "gates or state not fp32"
        assert attributes["plugin_namespace"] == "videossm" and attributes["plugin_version"] == "1"
        values = tensors(dict(zip(SHAPES["GatedDeltaScan"], inputs, strict=True)))
        output, last = gated_delta_reference(**values, scale=attributes["scale"])
        wanted = attributes["want_output"]
        return output.numpy().astype(value.dtype) if wanted else np.zeros(1), last.numpy().astype(np.float32)


class SelectiveScan(OpRun):
    """The plugin's contract; a placeholder is not read, whatever it holds."""

    op_domain = schemas.DOMAIN

    def _run(self, *inputs: np.ndarray | None, **attributes: Any) -> tuple[np.ndarray | None, np.ndarray]:
        assert all(value is not None for value in inputs), "an absent input"
        given = dict(zip(SHAPES["SelectiveScan"], (x for x in inputs if x is not None), strict=False))
        kinds = {given[name].dtype for name in ("u", "delta", "B", "C", "z") if name in given}
        assert len(kinds) == 1, "activations of several types"
        assert all(x.dtype == np.float32 for name, x in given.items() if name in ("A", "state", "D", "delta_bias"))
        kept = {name: x for name, x in given.items() if attributes.get(f"has_{name}", 1)}
        missing = [name for name in OPTIONAL if attributes[f"has_{name}"] and name not in given]
        assert not missing, f"read and not given: {missing}"
        y, last = selective_scan_reference(**tensors(kept), delta_softplus=bool(attributes["delta_softplus"]))
        wanted = attributes["want_output"]
        return y.numpy().astype(given["u"].dtype) if wanted else np.zeros(1), last.numpy().astype(np.float32)


def run(model: ModelProto, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    evaluator = ReferenceEvaluator(model, new_ops=[GatedDeltaScan, SelectiveScan])
    return [np.asarray(output) for output in evaluator.run(None, values)]


def expected_of(kind: str, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    if kind == "GatedDeltaScan":
        results = gated_delta_reference(**tensors(values), scale=ATTRIBUTES[kind]["scale"])
    else:
        results = selective_scan_reference(**tensors(values), delta_softplus=True)
    return [result.numpy() for result in results]


def assert_same(kind: str, model: ModelProto, outputs: tuple[int, ...] = (0, 1)) -> None:
    values = inputs_of(model)
    expected = expected_of(kind, values)
    elements = [value.type.tensor_type.elem_type for value in model.graph.output]
    for place, element, got in zip(outputs, elements, run(model, values), strict=True):
        assert got.dtype == helper.tensor_dtype_to_np_dtype(element), "another type than the graph says"
        error = np.linalg.norm(got.astype(np.float64) - expected[place]) / np.linalg.norm(expected[place])
        assert error <= TOLERANCE[element], f"output {place}: relative error {error:.1e}"


def scan_of(model: ModelProto) -> NodeProto:
    (node,) = (node for node in model.graph.node if node.domain == schemas.DOMAIN)
    return node


def attributes_of(node: NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_node_is_what_the_parser_looks_for(kind: str) -> None:
    """Name, domain, version and namespace, and every attribute of the schema: the parser warns of what is left out."""
    model = lower(graph(kind), "plugin")
    node = scan_of(model)
    attributes = attributes_of(node)
    assert (node.op_type, node.domain) == (kind, "videossm")
    assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", b"videossm")
    schema = onnx.defs.get_schema(kind, schemas.VERSION, schemas.DOMAIN)
    assert attributes.keys() == schema.attributes.keys()
    assert ATTRIBUTES[kind].items() <= attributes.items()
    assert len(model.graph.node) == 1, "nothing was to be cast"
    onnx.checker.check_model(model, full_check=True)
    assert_same(kind, model)


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_unread_output(kind: str) -> None:
    model = lower(graph(kind, read=(1,)), "plugin")
    node = scan_of(model)
    assert list(node.output) == ["", "last"]
    assert attributes_of(node)["want_output"] == 0
    onnx.checker.check_model(model, full_check=True)
    assert_same(kind, model, outputs=(1,))


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_unread_state(kind: str) -> None:
    """TensorRT takes an output that nothing reads, and the plugin has nowhere else to keep the state."""
    model = lower(graph(kind, read=(0,)), "plugin")
    assert list(scan_of(model).output) == ["output", "last"]
    assert_same(kind, model, outputs=(0,))


@pytest.mark.parametrize("element", [FLOAT, HALF], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    "given", [c for n in range(4) for c in itertools.combinations(OPTIONAL, n)], ids=lambda c: "+".join(c) or "none"
)
def test_optional_inputs(given: tuple[str, ...], element: int) -> None:
    """Absent ones between others have a placeholder of the right type, and a flag that says so."""
    left_out = tuple(name for name in OPTIONAL if name not in given)
    elements = {name: element for name in ("u", "delta", "B", "C", "z")}
    model = lower(graph("SelectiveScan", elements, left_out), "plugin")
    node = scan_of(model)
    attributes = attributes_of(node)
    assert [name for name in OPTIONAL if attributes[f"has_{name}"]] == list(given)
    assert "" not in node.input, "an input is absent"
    assert len(node.input) == (6 if not given else 7 + OPTIONAL.index(given[-1])), "more placeholders than are needed"
    onnx.checker.check_model(model, full_check=True)
    assert_same("SelectiveScan", model)


def test_gates_are_cast() -> None:
    elements = {name: HALF for name in ("query", "key", "value", "decay", "beta")}
    model = lower(graph("GatedDeltaScan", elements), "plugin")
    assert [node.op_type for node in model.graph.node] == ["Cast", "Cast", "GatedDeltaScan"]
    assert list(scan_of(model).input)[3:] == ["last.decay_fp32", "last.beta_fp32", "state"]
    onnx.checker.check_model(model, full_check=True)
    assert_same("GatedDeltaScan", model)


@pytest.mark.parametrize("left_out", [(), ("D", "z")], ids=["whole", "with placeholders"])
@pytest.mark.parametrize(("activations", "delta"), [(HALF, FLOAT), (FLOAT, HALF)], ids=["wide", "narrow"])
def test_step_sizes_of_another_type(activations: int, delta: int, left_out: tuple[str, ...]) -> None:
    """The plugin takes them in the activations' type alone: all are widened, and the output narrowed."""
    elements = {name: activations for name in ("u", "B", "C", "z")} | {"delta": delta}
    model = lower(graph("SelectiveScan", elements, left_out), "plugin")
    onnx.checker.check_model(model, full_check=True)
    assert_same("SelectiveScan", model)
    assert (model.graph.node[-1].op_type == "Cast") == (activations == HALF), "the output's type"


@pytest.mark.parametrize("read", [(0, 1), (1,)], ids=["read", "unread"])
def test_wide_step_sizes_of_an_output(read: tuple[int, ...]) -> None:
    elements = {name: HALF for name in ("u", "B", "C", "z")}
    model = lower(graph("SelectiveScan", elements, read=read), "plugin")
    assert list(scan_of(model).output) == (["last.output_fp32", "last"] if 0 in read else ["", "last"])
    assert_same("SelectiveScan", model, outputs=read)


@pytest.mark.parametrize("element", [FLOAT, HALF, BFLOAT], ids=["fp32", "fp16", "bf16"])
def test_types_that_the_plugins_take_are_not_cast(element: int) -> None:
    for kind, names in (
        ("GatedDeltaScan", ("query", "key", "value")),
        ("SelectiveScan", ("u", "delta", "B", "C", "z")),
    ):
        model = lower(graph(kind, {name: element for name in names}), "plugin")
        assert [node.op_type for node in model.graph.node] == [kind]


@pytest.mark.parametrize(
    ("kind", "name", "element", "expected"),
    [
        ("GatedDeltaScan", "query", TensorProto.DOUBLE, "double for its input query, expected fp32 or fp16 or bf16"),
        ("GatedDeltaScan", "key", HALF, "float16 for its input key, expected fp32"),
        ("GatedDeltaScan", "value", BFLOAT, "bfloat16 for its input value, expected fp32"),
        ("GatedDeltaScan", "beta", TensorProto.INT32, "int32 for its input beta, expected fp32 or fp16 or bf16"),
        ("GatedDeltaScan", "state", HALF, "float16 for its input state, expected fp32"),
        ("SelectiveScan", "A", HALF, "float16 for its input A, expected fp32"),
        ("SelectiveScan", "C", HALF, "float16 for its input C, expected fp32"),
        ("SelectiveScan", "z", HALF, "float16 for its input z, expected fp32"),
        ("SelectiveScan", "delta_bias", BFLOAT, "bfloat16 for its input delta_bias, expected fp32"),
    ],
)
def test_types_that_the_plugins_do_not_take(kind: str, name: str, element: int, expected: str) -> None:
    model = graph(kind)
    (value,) = (value for value in model.graph.input if value.name == name)
    value.type.tensor_type.elem_type = element
    with pytest.raises(LoweringError) as refused:
        lower(model, "plugin")
    assert str(refused.value) == f"{kind} node 'scan': got type {expected}; cast it"


def test_missing_input_is_refused() -> None:
    model = graph("GatedDeltaScan")
    model.graph.node[0].input[3] = ""
    with pytest.raises(LoweringError, match=r"GatedDeltaScan node 'scan': got no input decay, expected one; give it"):
        lower(model, "plugin")


@pytest.mark.parametrize("kind", sorted(SHAPES))
@pytest.mark.parametrize("in_place", [False, True])
def test_state_in_place(kind: str, in_place: bool) -> None:
    model = lower_plugin(graph(kind), state_in_place=in_place)
    assert attributes_of(scan_of(model))["state_in_place"] == in_place
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", ["contrib", "native", "plugin", "standard"])
def test_lowered_nodes_are_not_lowered_again(name: str) -> None:
    model = lower(graph("SelectiveScan", left_out=("D",)), "plugin")
    with pytest.raises(LoweringError, match=r"SelectiveScan node 'scan': got has_D, which is for TensorRT alone"):
        lower(model, name)
