"""Quantised graphs: their structure, their numbers against NumPy, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper, parser

from videossm.calib.graph import module_of
from videossm.calib.linears import Linear, Product, find_linears, find_products
from videossm.calib.observers import FORMATS, Codes, EightBits
from videossm.calib.qdq import QuantizationError, quantize, quantize_attention
from videossm.models.videossm.presets import test as small_preset
from videossm.runtime.manifest import Layers

Arrays = dict[str, NDArray[Any]]
Matrix = NDArray[np.float32]

PRECISIONS: list[EightBits] = ["int8", "fp8"]
LEAST, LARGEST = {"int8": -128.0, "fp8": -448.0}, {"int8": 127.0, "fp8": 448.0}
TOLERANCE = 2e-6  # relative error in the Frobenius norm, to the same arithmetic in NumPy
ERROR = {"int8": 0.03, "fp8": 0.1}  # the same, of an engine with random weights, to fp32
SIZE = 0.27  # of the fp32 weights
NO_FUSION = {"session.disable_quant_qdq": "1"}
BATCH, TOKENS, PAST, HEADS, DIM = 2, 5, 7, 3, 8


def error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def column_scales(precision: str) -> Callable[[Matrix], Matrix]:
    return lambda weight: np.abs(weight).max(0) / np.float32(LARGEST[precision])


def rounded(values: Matrix, scale: float | Matrix, precision: str, zero_point: int = 0) -> Matrix:
    """What quantising and dequantising leaves of values."""
    codes = values / np.float32(scale)
    if precision == "int8":
        codes = np.clip(np.rint(codes) + zero_point, LEAST[precision], LARGEST[precision]) - zero_point
    else:
        codes = np.clip(codes, LEAST[precision], LARGEST[precision])
        codes = codes.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return codes * np.float32(scale)


def product_of_rounded(x: Matrix, weight: Matrix, codes: Codes, precision: str) -> Matrix:
    columns = column_scales(precision)(weight)
    return rounded(x, codes.scale, precision, codes.zero_point) @ rounded(weight, columns, precision)


def symmetric(scale: float) -> Codes:
    return Codes(scale, 0)


@pytest.fixture
def shared_input() -> tuple[ModelProto, list[Linear], Arrays]:
    """Two linears and a gate on one tensor, one bias for all of them; the constants beside the graph."""
    random = np.random.default_rng(3)
    constants = {
        **{name: random.standard_normal((6, 4), np.float32) for name in ("w_q", "w_k", "w_gate")},
        "bias": random.standard_normal(4, np.float32),
    }
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 23]>
        shared_input (float[2, 5, 6] x) => (float[2, 5, 4] q, float[2, 5, 4] k, float[2, 5, 4] gate) {
            qx = MatMul(x, w_q)
            q = Add(qx, bias)
            kx = MatMul(x, w_k)
            k = Add(kx, bias)
            gx = MatMul(x, w_gate)
            gate = Add(gx, bias)
        }"""
    )
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    linears = [
        Linear(f"block.{name}", "pass", f"node_{name}x", "MatMul", "x", 3, f"w_{name}", (6, 4), f"node_{name}", "bias")
        for name in "qk"
    ]
    return model, linears, constants


def attention_graph(masked: bool) -> tuple[ModelProto, Product]:
    mask = f", bool[1, 1, {TOKENS}, {PAST}] mask" if masked else ""
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 23]>
        attention (float[{BATCH}, {TOKENS}, {HEADS * DIM}] q, float[{BATCH}, {PAST}, {HEADS * DIM}] k,
                   float[{BATCH}, {PAST}, {HEADS * DIM}] v{mask}) => (float[{BATCH}, {TOKENS}, {HEADS * DIM}] y) {{
            y = Attention<q_num_heads = {HEADS}, kv_num_heads = {HEADS}>(q, k, v{", mask" if masked else ""})
        }}"""
    )
    model.graph.node[0].name = "attention"
    return model, Product("block.attention", "pass", "attention", "q", "k", "v")


def attention_of_rounded(arrays: Arrays, codes: dict[str, Codes], precision: str) -> Matrix:
    q, k, v = (
        rounded(arrays[name], codes[name].scale, precision, codes[name].zero_point)
        .reshape(BATCH, -1, HEADS, DIM)
        .swapaxes(1, 2)
        for name in "qkv"
    )
    scores = q @ k.swapaxes(2, 3) / np.float32(DIM**0.5)
    if "mask" in arrays:
        scores = np.where(arrays["mask"], scores, -np.inf)
    exponents = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities = exponents / exponents.sum(-1, keepdims=True)
    seen = rounded(probabilities, 1 / LARGEST[precision], precision) @ v
    return seen.swapaxes(1, 2).reshape(BATCH, TOKENS, HEADS * DIM)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_linears_against_numpy(
    shared_input: tuple[ModelProto, list[Linear], Arrays], run_graph: Callable[..., Arrays], precision: EightBits
) -> None:
    """The scale clips: saturation is part of the arithmetic. The gate, and a bias that it shares, keep fp32."""
    model, linears, constants = shared_input
    x = np.random.default_rng(5).standard_normal((2, 5, 6), np.float32)
    codes = symmetric(2.0 / LARGEST[precision])
    assert np.abs(x).max() > 2.0, "nothing is clipped"
    quantize(model, linears, {"x": codes}, precision, column_scales(precision))
    onnx.checker.check_model(model, full_check=True)
    got = run_graph(model, {"x": x})
    for name in "qk":
        expected = product_of_rounded(x, constants[f"w_{name}"], codes, precision) + constants["bias"]
        assert error(got[name], expected) <= TOLERANCE, name
    assert error(got["gate"], x @ constants["w_gate"] + constants["bias"]) <= TOLERANCE


def test_a_zero_point_against_numpy(
    shared_input: tuple[ModelProto, list[Linear], Arrays], run_graph: Callable[..., Arrays], tmp_path: Path
) -> None:
    """Values of one sign, clipped at both ends; the product stays one of integers."""
    model, linears, constants = shared_input
    x = np.random.default_rng(5).uniform(-0.2, 2.5, (2, 5, 6)).astype(np.float32)
    codes = FORMATS["int8"].codes(2.0, -0.1)
    assert codes.zero_point < -100 and x.min() < -0.1 and x.max() > 2.0
    quantize(model, linears, {"x": codes}, "int8", column_scales("int8"))
    onnx.checker.check_model(model, full_check=True)
    got = run_graph(model, {"x": x}, optimized=tmp_path / "optimized.onnx")
    for name in "qk":
        expected = product_of_rounded(x, constants[f"w_{name}"], codes, "int8") + constants["bias"]
        assert error(got[name], expected) <= TOLERANCE, name
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["MatMulIntegerToFloat"] == 2


CONVOLUTIONS = {  # operator and attributes -> shapes of x and of the weight
    "Conv": ((2, 6, 9), (4, 6, 3)),
    "Conv<strides = [2, 1], group = 2>": ((2, 6, 8, 5), (4, 3, 3, 3)),
    "Conv<pads = [1, 1, 1, 1, 1, 1]>": ((2, 3, 4, 6, 5), (4, 3, 3, 3, 3)),
    "ConvTranspose<strides = [2, 2]>": ((2, 6, 8, 5), (6, 4, 3, 3)),
}


@pytest.mark.parametrize("operator", CONVOLUTIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_convolutions_against_rounded_fp32(
    run_graph: Callable[..., Arrays], precision: EightBits, operator: str
) -> None:
    """The fp32 graph on a rounded input, with a weight rounded by output channel; the bias is as it was."""
    random = np.random.default_rng(4)
    x_shape, shape = CONVOLUTIONS[operator]
    x, weight = random.standard_normal(x_shape, np.float32), random.standard_normal(shape, np.float32)
    weight *= random.uniform(0.1, 10, shape[:2] + (1,) * (len(shape) - 2)).astype(np.float32)
    bias = random.standard_normal(4, np.float32)

    def graph(weight: Matrix) -> ModelProto:
        sizes, unknown = ", ".join(map(str, x_shape)), ", ".join("nchwd"[: len(x_shape)])
        model = parser.parse_model(
            f"""<ir_version: 10, opset_import: ["": 23]>
            convolution (float[{sizes}] x) => (float[{unknown}] y) {{ y = {operator}(x, w, b) }}"""
        )
        model.graph.node[0].name = "node_y"
        model.graph.initializer.extend([numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")])
        return model

    axis = 1 if operator.startswith("ConvTranspose") else 0
    columns = np.moveaxis(weight, axis, -1)
    scales = column_scales(precision)(columns.reshape(-1, 4))
    codes = symmetric(2.0 / LARGEST[precision])
    model = graph(weight)
    (linear,) = find_linears(model, "pass", (Layers(modules=".*", keep=None),)).linears
    quantize(model, [linear], {"x": codes}, precision, column_scales(precision))
    onnx.checker.check_model(model, full_check=True)
    left = np.ascontiguousarray(np.moveaxis(rounded(columns, scales, precision), -1, axis))
    expected = run_graph(graph(left), {"x": rounded(x, codes.scale, precision)})["y"]
    entries = {} if precision == "int8" else NO_FUSION
    assert error(run_graph(model, {"x": x}, entries=entries)["y"], expected) <= TOLERANCE


@pytest.mark.parametrize("sides", [(5, 6), (2, 3, 5, 6)], ids=["two dimensions", "four"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_of_other_ranks(
    run_graph: Callable[..., Arrays], precision: EightBits, sides: tuple[int, ...]
) -> None:
    """Of two dimensions none is quantised; of four, the bias adds none."""
    random = np.random.default_rng(6)
    weight, bias = random.standard_normal((6, 4), np.float32), random.standard_normal(4, np.float32)
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 23]>
        ranks (float[{", ".join(map(str, sides))}] x) => (float[{", ".join(map(str, (*sides[:-1], 4)))}] y) {{
            p = MatMul(x, w)
            y = Add(p, b)
        }}"""
    )
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    model.graph.initializer.extend([numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")])
    linears = find_linears(model, "pass", (Layers(modules=".*", keep=None),)).linears
    assert len(linears) == (len(sides) > 2)
    codes, x = symmetric(2.0 / LARGEST[precision]), random.standard_normal(sides, np.float32)
    quantize(model, linears, {"x": codes}, precision, column_scales(precision))
    onnx.checker.check_model(model, full_check=True)
    expected = product_of_rounded(x, weight, codes, precision) + bias if linears else x @ weight + bias
    got = run_graph(model, {"x": x})["y"]
    assert got.shape == expected.shape and error(got, expected) <= TOLERANCE


@pytest.mark.parametrize("precision", PRECISIONS)
def test_names_and_constants(shared_input: tuple[ModelProto, list[Linear], Arrays], precision: EightBits) -> None:
    model, linears, _ = shared_input
    quantize(model, linears, {"x": Codes(0.5, -3 if precision == "int8" else 0)}, precision, column_scales(precision))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    eight_bits = np.dtype(np.int8 if precision == "int8" else ml_dtypes.float8_e4m3fn)
    shapes = {"w_gate": (6, 4), "bias": (4,)}
    for name, pair in (("q", "x"), ("k", "x.1")):
        shapes |= {f"{pair}.scale": (), f"{pair}.zero": ()}
        shapes |= {f"block.{name}.weight.{part}": (4,) for part in ("scale", "zero")}
        shapes[f"block.{name}.weight.q"] = (6, 4)
        shapes[f"block.{name}.bias.{precision}"] = (1, 1, 4) if precision == "int8" else (4,)
    assert {name: values.shape for name, values in constants.items()} == shapes
    assert {values.dtype for name, values in constants.items() if name.endswith((".q", ".zero"))} == {eight_bits}
    assert constants["x.scale"] == constants["x.1.scale"] == np.float32(0.5)
    assert constants["x.zero"] == constants["x.1.zero"] == (-3 if precision == "int8" else 0)


def test_a_column_of_zeros(
    shared_input: tuple[ModelProto, list[Linear], Arrays],
    run_graph: Callable[..., Arrays],
    feeds: Callable[..., Arrays],
) -> None:
    model, linears, constants = shared_input
    constants["w_q"][:, 1] = 0
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w_q")
    weight.CopyFrom(numpy_helper.from_array(constants["w_q"], "w_q"))
    quantize(
        model, linears, {"x": symmetric(0.02)}, "int8", lambda weight: np.maximum(column_scales("int8")(weight), 1e-3)
    )
    got = run_graph(model, feeds(model))["q"]
    assert np.array_equal(got[..., 1], np.full_like(got[..., 1], constants["bias"][1]))


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_against_numpy(run_graph: Callable[..., Arrays], precision: EightBits, masked: bool) -> None:
    model, product = attention_graph(masked)
    random = np.random.default_rng(9)
    lengths = {"q": TOKENS, "k": PAST, "v": PAST}
    arrays: Arrays = {name: random.standard_normal((BATCH, n, HEADS * DIM), np.float32) for name, n in lengths.items()}
    if masked:
        arrays["mask"] = random.random((1, 1, TOKENS, PAST)) < 0.6
        arrays["mask"][..., 0] = True
    codes = {name: symmetric(3 / LARGEST[precision]) for name in "qkv"}
    quantize_attention(model, [product], codes, precision)
    onnx.checker.check_model(model, full_check=True)
    entries = {} if precision == "int8" else NO_FUSION
    got = run_graph(model, arrays, entries=entries)["y"]
    assert error(got, attention_of_rounded(arrays, codes, precision)) <= TOLERANCE


@pytest.mark.parametrize("precision", PRECISIONS)
def test_who_reads_what(
    load_graph: Callable[[str], ModelProto],
    layers: Sequence[Layers],
    quantized: Callable[..., ModelProto],
    precision: EightBits,
) -> None:
    before, after = load_graph("step"), quantized("step", precision)
    onnx.checker.check_model(after, full_check=True)
    linears = {linear.node: linear for linear in find_linears(before, "step", layers).linears}
    biases = {linear.bias_node for linear in linears.values()}
    made_by = {output: node for node in after.graph.node for output in node.output}
    old = {node.name: node for node in before.graph.node}
    for node in after.graph.node:
        if linear := linears.get(node.name):
            activation, weight = (made_by[name] for name in node.input)
            assert activation.op_type == weight.op_type == "DequantizeLinear"
            assert made_by[activation.input[0]].input[0] == linear.input
            assert weight.input[0] == f"{linear.name}.weight.q"
        elif node.name in old and node.name not in biases:
            assert node == old[node.name], "a node that is not quantised has changed"
    added = Counter(node.op_type for node in after.graph.node if node.name not in old)
    assert added == {"QuantizeLinear": len(linears), "DequantizeLinear": 2 * len(linears)}
    assert len(after.graph.node) == len(before.graph.node) + 3 * len(linears)


def test_gates_read_fp32(
    load_graph: Callable[[str], ModelProto], layers: Sequence[Layers], quantized: Callable[..., ModelProto]
) -> None:
    """The very tensor that queries, keys and values are quantised from."""
    quantised = {linear.input for linear in find_linears(load_graph("step"), "step", layers).linears}
    nodes = [node for node in quantized("step", "int8").graph.node if node.op_type == "MatMul"]
    gates = {module_of(node): node.input[0] for node in nodes if ".memory." in module_of(node)}
    assert len(gates) == 2 * small_preset().transformer.layers, "decay with beta, and the output's"
    assert set(gates.values()) <= quantised


@pytest.mark.parametrize("precision", PRECISIONS)
def test_loads_in_a_session_of_default_options(
    load_graph: Callable[[str], ModelProto],
    quantized: Callable[..., ModelProto],
    feeds: Callable[[ModelProto], Arrays],
    run_graph: Callable[..., Arrays],
    precision: EightBits,
) -> None:
    model = load_graph("step")
    expected, got = (run_graph(graph, feeds(model)) for graph in (model, quantized("step", precision)))
    errors = {name: error(got[name], values) for name, values in expected.items()}
    assert 0 < max(errors.values()) <= ERROR[precision], errors


def test_int8_is_fused(
    load_graph: Callable[[str], ModelProto],
    layers: Sequence[Layers],
    quantized: Callable[..., ModelProto],
    feeds: Callable[[ModelProto], Arrays],
    run_graph: Callable[..., Arrays],
    tmp_path: Path,
) -> None:
    """Every linear is one product of integers, those with a zero point too; nothing is dequantised on its own."""
    model = quantized("step", "int8")
    run_graph(model, feeds(model), optimized=tmp_path / "optimized.onnx")
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["MatMulIntegerToFloat"] == len(find_linears(load_graph("step"), "step", layers).linears)
    assert operators["DequantizeLinear"] == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_subset_loads(
    load_graph: Callable[[str], ModelProto],
    layers: Sequence[Layers],
    feeds: Callable[[ModelProto], Arrays],
    run_graph: Callable[..., Arrays],
    precision: EightBits,
) -> None:
    """Layers return to fp32 one by one; then graphs arise in which a product has no quantised neighbour."""
    for start, step in ((0, 2), (1, 2), (4, 5)):
        model = load_graph("step")
        chosen = find_linears(model, "step", layers).linears[start::step]
        codes = {linear.input: symmetric(0.05) for linear in chosen}
        quantize(model, chosen, codes, precision, column_scales(precision))
        run_graph(model, feeds(model))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_of_an_engine(
    load_graph: Callable[[str], ModelProto],
    layers: Sequence[Layers],
    quantized: Callable[..., ModelProto],
    feeds: Callable[[ModelProto], Arrays],
    run_graph: Callable[..., Arrays],
    precision: EightBits,
) -> None:
    before, after = load_graph("step"), quantized("step", precision, attention=True)
    onnx.checker.check_model(after, full_check=True)
    operators = Counter(node.op_type for node in after.graph.node)
    linears, products = len(find_linears(before, "step", layers).linears), len(find_products(before, "step", layers))
    assert operators["Attention"] == 0
    assert operators["QuantizeLinear"] == linears + 4 * products
    expected = run_graph(before, feeds(before))
    got = run_graph(after, feeds(before), entries=NO_FUSION)
    for name, values in expected.items():
        assert error(got[name], values) <= ERROR[precision], name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_small(
    load_graph: Callable[[str], ModelProto],
    layers: Sequence[Layers],
    quantized: Callable[..., ModelProto],
    precision: EightBits,
) -> None:
    before, after = load_graph("step"), quantized("step", precision)
    linears = find_linears(before, "step", layers).linears
    old = sum(4 * linear.shape[0] * linear.shape[1] for linear in linears)
    new = sum(len(t.raw_data) for t in after.graph.initializer if ".weight." in t.name)
    assert new <= SIZE * old
    kept = {tensor.name for tensor in after.graph.initializer}
    assert kept.isdisjoint(linear.weight for linear in linears), "an fp32 weight is still there"
    read = {name for node in after.graph.node for name in node.input}
    assert kept <= read, "a constant that nothing reads"


def test_weights_beside_the_graph(shared_input: tuple[ModelProto, list[Linear], Arrays], tmp_path: Path) -> None:
    """They are read one at a time; what is left can be loaded afterwards."""
    model, linears, _ = shared_input
    expected = ModelProto()
    expected.CopyFrom(model)
    quantize(expected, linears, {"x": symmetric(0.1)}, "int8", column_scales("int8"))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    outside = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    quantize(outside, linears, {"x": symmetric(0.1)}, "int8", column_scales("int8"), tmp_path)
    onnx.load_external_data_for_model(outside, str(tmp_path))

    def contents(model: ModelProto) -> dict[str, Any]:
        return {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in model.graph.initializer}

    assert contents(outside) == contents(expected)


@pytest.mark.parametrize("scale", [None, 0.0, -1.0, float("nan"), float("inf"), 1e-60])
def test_refuses_scales(shared_input: tuple[ModelProto, list[Linear], Arrays], scale: float | None) -> None:
    model, linears, _ = shared_input
    with pytest.raises(QuantizationError) as refused:
        quantize(model, linears, {} if scale is None else {"x": symmetric(scale)}, "int8", column_scales("int8"))
    assert str(refused.value) == (f"scale of 'x': got {scale}, expected a positive number; calibrate this plan again")


def test_refuses_other_forms_of_attention() -> None:
    model, product = attention_graph(masked=True)
    model.graph.node[0].attribute.append(helper.make_attribute("is_causal", 1))
    with pytest.raises(QuantizationError, match=r"block\.attention: got 3 heads .* \['is_causal'\].*; leave attention"):
        quantize_attention(model, [product], dict.fromkeys("qkv", symmetric(0.1)), "int8")


def test_attention_needs_shapes() -> None:
    model, product = attention_graph(masked=False)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(QuantizationError, match=r"block\.attention: got no static shape of 'q'.*; run shape inference"):
        quantize_attention(model, [product], dict.fromkeys("qkv", symmetric(0.1)), "int8")
