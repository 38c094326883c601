"""Zero points out of a graph: the same codes and the same numbers, in ONNX Runtime, and none of them left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper, parser

from videossm.calib.linears import Linear
from videossm.calib.observers import FORMATS, Codes, EightBits, weight_scales
from videossm.calib.plans import save_graph
from videossm.calib.qdq import quantize
from videossm.export.tensorrt.zero_points import remove_zero_points, without_zero_points
from videossm.runtime.backends.session import session_options

Arrays = dict[str, NDArray[Any]]

TOLERANCE = 1e-6  # relative error in the Frobenius norm
WIDTHS = 6, 8, 4  # of x, of what lies between the linears, of y
ONE_SIDED = FORMATS["int8"].codes(3.0, -0.17)
SYMMETRIC = Codes(2.5 / 127, 0)
INPUT = np.random.default_rng(1).standard_normal((1, 5, WIDTHS[0]), np.float32)


@pytest.fixture
def quantized() -> Callable[..., ModelProto]:
    """`quantized({"x": codes, "hidden": codes}, precision)`: two linears with GELU between them; a third reads it too.

    Their biases are one constant where the widths allow it, which the third's Add reads in fp32.
    """

    def make(codes: dict[str, Codes], precision: EightBits = "int8") -> ModelProto:
        random = np.random.default_rng(3)
        model = parser.parse_model(
            f"""<ir_version: 10, opset_import: ["": 23]>
            small (float[1, 5, {WIDTHS[0]}] x) => (float[1, 5, {WIDTHS[2]}] y, float[1, 5, {WIDTHS[2]}] other) {{
                first = MatMul(x, w_0)
                wide = Add(first, bias_0)
                hidden = Gelu(wide)
                second = MatMul(hidden, w_1)
                y = Add(second, bias_1)
                third = MatMul(hidden, w_2)
                other = Add(third, bias_1)
            }}"""
        )
        for node in model.graph.node:
            node.name = f"node_{node.output[0]}"
        shapes = {"w_0": WIDTHS[:2], "w_1": WIDTHS[1:], "w_2": WIDTHS[1:], "bias_0": WIDTHS[1:2], "bias_1": WIDTHS[2:]}
        arrays = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in arrays.items())
        linears = [
            Linear("linear.0", "own", "node_first", "MatMul", "x", 3, "w_0", WIDTHS[:2], "node_wide", "bias_0"),
            Linear("linear.1", "own", "node_second", "MatMul", "hidden", 3, "w_1", WIDTHS[1:], "node_y", "bias_1"),
            Linear("linear.2", "own", "node_third", "MatMul", "hidden", 3, "w_2", WIDTHS[1:], "node_other", "bias_1"),
        ]
        return quantize(model, linears, codes, precision, lambda weight: weight_scales(weight, precision, "max"))

    return make


def run(model: ModelProto) -> Arrays:
    """All outputs, and all codes that QuantizeLinear makes."""
    tapped = ModelProto()
    tapped.CopyFrom(model)
    codes = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    tapped.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in codes)
    session = onnxruntime.InferenceSession(
        tapped.SerializeToString(), session_options("int8", 1), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": INPUT}), strict=True))


def zero_points(model: ModelProto) -> dict[str, int]:
    """Of every activation's pair, by the name of the node that reads it."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = (node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear"))
    return {node.name: int(constants[node.input[2]]) for node in pairs if constants[node.input[2]].ndim == 0}


def check_same(before: Arrays, after: Arrays) -> None:
    assert before.keys() == after.keys()
    for name, values in before.items():
        if values.dtype == np.int8:
            assert np.array_equal(after[name], values), f"{name}: other codes"
        else:
            difference = np.linalg.norm(after[name] - values) / np.linalg.norm(values)
            assert difference <= TOLERANCE, f"{name}: got {difference:.1e}"


@pytest.mark.parametrize(
    "codes",
    [
        {"x": SYMMETRIC, "hidden": ONE_SIDED},
        {"x": FORMATS["int8"].codes(2.5, -0.8), "hidden": SYMMETRIC},
        {"x": FORMATS["int8"].codes(2.5, -0.8), "hidden": ONE_SIDED},
    ],
    ids=["of the second", "of the first", "of both"],
)
def test_the_same_codes_and_numbers(quantized: Callable[..., ModelProto], codes: dict[str, Codes]) -> None:
    """Values beyond the ends of the range are among them, which saturate."""
    model = quantized(codes)
    assert any(zero_points(model).values())
    before = run(model)
    made = before["hidden.q"] if codes["hidden"].zero_point else before["x.q"]
    assert len(np.unique(made)) > 10 and {-128, 127} & set(made.flat)
    remove_zero_points(model)
    onnx.checker.check_model(model, full_check=True)
    assert set(zero_points(model).values()) == {0}
    check_same(before, run(model))


def test_only_pairs_with_a_zero_point_change(quantized: Callable[..., ModelProto]) -> None:
    before, after = (quantized({"x": SYMMETRIC, "hidden": ONE_SIDED}) for _ in range(2))
    remove_zero_points(after)
    old = {node.name: node for node in before.graph.node}
    added = [node for node in after.graph.node if node.name not in old]
    assert [node.op_type for node in added] == ["Add", "Add"], "one for each pair"
    kept = {node.name: node for node in after.graph.node if node.name in old}
    changed = {name for name, node in old.items() if kept[name] != node}
    assert changed == {f"{name}.{part}" for name in ("hidden", "hidden.1") for part in ("q", "dq")} | {
        "node_y",
        "node_other",
    }
    read = {name for node in after.graph.node for name in node.input}
    assert {tensor.name for tensor in after.graph.initializer} <= read, "a constant that nothing reads"


def test_a_graph_in_a_file(quantized: Callable[..., ModelProto], tmp_path: Path) -> None:
    """Its own file stays as it was."""
    (tmp_path / "plan").mkdir(), (tmp_path / "graphs").mkdir()
    model = quantized({"x": SYMMETRIC, "hidden": ONE_SIDED})
    graph = tmp_path / "plan" / "step.onnx"
    save_graph(model, graph)
    content = graph.read_bytes()
    written = without_zero_points(graph, tmp_path / "graphs")
    assert written == tmp_path / "graphs" / "step.onnx"
    assert graph.read_bytes() == content
    assert set(zero_points(onnx.load(written)).values()) == {0}
    check_same(run(model), run(onnx.load(written)))


@pytest.mark.parametrize("kind", ["symmetric", "fp8", "fp32"])
def test_a_graph_without_zero_points_is_returned_as_it_is(
    quantized: Callable[..., ModelProto], tmp_path: Path, kind: str
) -> None:
    model = quantized({"x": SYMMETRIC, "hidden": SYMMETRIC}, "fp8" if kind == "fp8" else "int8")
    if kind == "fp32":
        model = parser.parse_model(
            '<ir_version: 10, opset_import: ["": 23]> none (float[1] x) => (float[1] y) { y = Neg(x) }'
        )
    graph = tmp_path / "step.onnx"
    save_graph(model, graph)
    (tmp_path / "graphs").mkdir()
    assert without_zero_points(graph, tmp_path / "graphs") == graph
    assert list((tmp_path / "graphs").iterdir()) == []
    before = model.SerializeToString(deterministic=True)
    remove_zero_points(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_product_without_a_bias_gets_one(quantized: Callable[..., ModelProto]) -> None:
    """Also where two things read it."""
    model = quantized({"x": SYMMETRIC, "hidden": ONE_SIDED})
    (add,) = (node for node in model.graph.node if node.output[0] == "y")
    add.op_type, add.input[1] = "Mul", add.input[0]  # the square
    without = ModelProto()
    without.CopyFrom(model)
    remove_zero_points(without)
    before, after = run(model), run(without)
    for name in ("y", "other"):
        assert np.linalg.norm(after[name] - before[name]) <= TOLERANCE * np.linalg.norm(before[name])
    zeros = [t for t in without.graph.initializer if t.data_type == onnx.TensorProto.INT8 and not t.dims]
    assert not any(numpy_helper.to_array(zero).any() for zero in zeros)
