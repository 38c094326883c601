"""Run as a script, on this processor or an emulated one: what is ONNX Runtime's error in int8 products?

Prints one JSON object: `vnni`, has the processor AVX-512's VNNI; `errors`, relative to the same product in whole
numbers, by product and then for the project's session (`ours`) and one that leaves the sums as they are (`plain`).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy._core._multiarray_umath import __cpu_features__  # by cpuid; /proc/cpuinfo is the host's in an emulator
from numpy.typing import DTypeLike, NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from videossm.runtime.backends.session import EXACT_INT8, session_options

SCALE = np.float32(0.02)
PRODUCTS = {  # shapes of both sides, type and zero point of the left one, is the right one a weight
    "int8": ((2, 24, 256), (256, 64), np.int8, 0, True),
    "int8 zero point": ((2, 24, 256), (256, 64), np.int8, -37, True),
    "uint8 zero point": ((2, 24, 256), (256, 64), np.uint8, 111, True),
    "one row": ((1, 1, 97), (97, 33), np.int8, 0, True),
    "two activations": ((1, 4, 24, 64), (1, 4, 64, 33), np.int8, 0, False),
}


def main() -> None:
    errors = {name: {kind: error(*product, kind) for kind in ("ours", "plain")} for name, product in PRODUCTS.items()}
    print(json.dumps({"vnni": bool(__cpu_features__["AVX512VNNI"]), "errors": errors}))


def error(
    left: tuple[int, ...], right: tuple[int, ...], kind: DTypeLike, zero: int, weight: bool, session: str
) -> float:
    """Of the product of codes over all of their range, with a scale of its own for each column of a weight."""
    random = np.random.default_rng(0)
    limits = np.iinfo(np.dtype(kind))
    a = random.integers(limits.min, limits.max + 1, left)
    b = random.integers(-127, 128, right)
    scales = random.uniform(0.01, 0.02, right[-1]).astype(np.float32) if weight else SCALE
    model = product(a.shape, b, kind, zero, scales)
    options = session_options("int8", 1)
    if session == "plain":
        options.add_session_config_entry(EXACT_INT8, "0")
    opened = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"a": ((a - zero) * np.float64(SCALE)).astype(np.float32)}
    if not weight:
        feeds["b"] = (b * np.float64(SCALE)).astype(np.float32)
    (got,) = opened.run(None, feeds)
    expected = ((a - zero) @ b) * (np.float64(SCALE) * np.asarray(scales, np.float64))
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def product(
    left: tuple[int, ...], b: NDArray[Any], kind: DTypeLike, zero: int, scales: NDArray[np.float32] | np.float32
) -> ModelProto:
    """MatMul(QDQ(a), DequantizeLinear(b)) with `b` as a weight where it has scales, else MatMul(QDQ(a), QDQ(b))."""
    weight = np.ndim(scales) == 1
    constants = {
        "a.scale": SCALE,
        "a.zero": np.array(zero, kind),
        "b.scale": scales,
        "b.zero": np.zeros(np.shape(scales), np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "a.scale", "a.zero"], ["a.q"]),
        helper.make_node("DequantizeLinear", ["a.q", "a.scale", "a.zero"], ["a.dq"]),
        helper.make_node("DequantizeLinear", ["b.q", "b.scale", "b.zero"], ["b.dq"], axis=1),
        helper.make_node("MatMul", ["a.dq", "b.dq"], ["y"]),
    ]
    inputs = {"a": left}
    if weight:
        constants["b.q"] = b.astype(np.int8)
    else:
        nodes.insert(2, helper.make_node("QuantizeLinear", ["b", "b.scale", "b.zero"], ["b.q"]))
        inputs["b"] = b.shape
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*left[:-1], b.shape[-1]])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


if __name__ == "__main__":
    main()
