"""fp8 in fp32 operators: the same bits as ONNX Runtime's own pairs, in graphs that have none."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from videossm.calib.emulate_fp8 import emulate_fp8

OWN_PAIRS = {"session.disable_quant_qdq": "1"}


def pair(tensor, label, scale):
    constants = [
        numpy_helper.from_array(np.array(scale, np.float32), f"{label}.scale"),
        numpy_helper.from_array(np.zeros((), ml_dtypes.float8_e4m3fn), f"{label}.zero"),
    ]
    names = [constant.name for constant in constants]
    nodes = [
        helper.make_node("QuantizeLinear", [tensor, *names], [f"{label}.q"], name=f"{label}.q"),
        helper.make_node("DequantizeLinear", [f"{label}.q", *names], [f"{label}.dq"], name=f"{label}.dq"),
    ]
    return nodes, constants


def pairs_of(*scales):
    """y = the sum of x through a pair of each scale."""
    nodes, constants = [], []
    for place, scale in enumerate(scales):
        added, fixed = pair("x", f"x.{place}", scale)
        nodes, constants = [*nodes, *added], [*constants, *fixed]
    nodes.append(helper.make_node("Sum", [f"x.{place}.dq" for place in range(len(scales))], ["y"], name="y"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "pairs", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def edges():
    """All codes of E4M3, the middles between them, and fp32's next values on both sides of each."""
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    codes = np.sort(codes[np.isfinite(codes)])
    values = np.concatenate([codes, (codes[1:] + codes[:-1]) / 2])
    around = [np.nextafter(values, np.float32(limit)) for limit in (-np.inf, np.inf)]
    return np.concatenate([values, *around])


@pytest.mark.parametrize("scale", [1.0, 0.0137, 3.0e-5, 2.0**-100])
def test_every_value_is_rounded_as_the_pair_rounds_it(run_graph, scale):
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(100_000) * 10 ** rng.uniform(-6, 4, 100_000)
    beyond = [0.0, -0.0, 449.0, -1e30, 3e38, 1e-45, np.inf, -np.inf]
    x = np.concatenate([edges(), spread, beyond]).astype(np.float32) * np.float32(scale)
    model = pairs_of(scale)
    expected = run_graph(model, {"x": x}, entries=OWN_PAIRS)["y"]
    assert np.unique(expected).size == 2 * 126 + 1, "all codes but the two zeros, which are one"
    assert np.array_equal(run_graph(emulate_fp8(model), {"x": x}, entries=OWN_PAIRS)["y"], expected)


def test_nan_stays_nan(run_graph):
    x = np.array([np.nan], np.float32)
    assert np.isnan(run_graph(emulate_fp8(pairs_of(1.0)), {"x": x}, entries=OWN_PAIRS)["y"]).all()


def test_pairs_of_one_scale_become_one(run_graph):
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    model = pairs_of(0.01, 0.02, 0.01)
    expected = run_graph(model, {"x": x}, entries=OWN_PAIRS)["y"]
    emulated = emulate_fp8(model)
    assert Counter(node.op_type for node in emulated.graph.node)["Clip"] == 2
    assert np.array_equal(run_graph(emulated, {"x": x}, entries=OWN_PAIRS)["y"], expected)


@pytest.mark.parametrize("attention", [False, True], ids=["linears", "attention too"])
def test_a_step_computes_the_same_bits(quantized, feeds, run_graph, attention):
    model = quantized("step", "fp8", attention)
    inputs = feeds(model)
    expected = run_graph(model, inputs, entries=OWN_PAIRS)
    before = Counter(node.op_type for node in model.graph.node)
    emulated = emulate_fp8(model)
    onnx.checker.check_model(emulated, full_check=True)
    after = Counter(node.op_type for node in emulated.graph.node)
    assert (after["QuantizeLinear"], after["DequantizeLinear"]) == (
        0,
        before["DequantizeLinear"] - before["QuantizeLinear"],
    ), "weights stay in 8 bits"
    found = run_graph(emulated, inputs, entries=OWN_PAIRS)
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def test_a_graph_of_another_precision_stays_as_it_is(quantized):
    model = quantized("step", "int8")
    before = model.SerializeToString(deterministic=True)
    assert emulate_fp8(model).SerializeToString(deterministic=True) == before
