"""What a pass changes in place, as TensorRT takes it: the same numbers, on graphs that are small enough to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from videossm.export.tensorrt.cache_update import use_cache_updates, with_cache_updates
from videossm.runtime.backends.session import session_options
from videossm.runtime.errors import PlanError

BATCH, HEADS, PLACES, OWN, DIM, START = 2, 3, 7, 2, 4, 5
STATE, PART = (BATCH, HEADS, PLACES, DIM), (BATCH, HEADS, OWN, DIM)
IN_PLACE = {"written": "window"}


def where(start: int = START) -> np.ndarray:
    """Places `start` to `start` + OWN of every batch and head."""
    sides = np.meshgrid(np.arange(BATCH), np.arange(HEADS), np.arange(start, start + OWN), indexing="ij")
    return np.stack(sides, -1)


def scattered(indices: np.ndarray, operator: str = "ScatterND") -> ModelProto:
    """A pass that writes its part of `window`, and reads the whole."""
    first = ["window", "where", "own"] if operator == "ScatterND" else ["window", "window", "where"]
    nodes = [
        helper.make_node(operator, first, ["written"], name="write"),
        helper.make_node("ReduceSum", ["written"], ["sum"], keepdims=0),
    ]
    shapes = {"window": STATE, "own": PART, "written": STATE, "sum": ()}
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "pass",
        [info["window"], info["own"]],
        [info["written"], info["sum"]],
        [numpy_helper.from_array(indices, "where")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def test_equal_numbers(tmp_path: Path) -> None:
    before = tmp_path / "step.onnx"
    onnx.save(scattered(where()), before)
    (tmp_path / "other").mkdir()
    after = with_cache_updates(IN_PLACE, before, tmp_path / "other")
    assert after == tmp_path / "other" / "step.onnx"
    model = onnx.load(after)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["TensorScatter", "ReduceSum"]
    assert [tensor.name for tensor in model.graph.initializer] == ["written.start"]
    draw = np.random.default_rng(1).standard_normal
    given = {"window": draw(STATE, np.float32), "own": draw(PART, np.float32)}
    expected, got = (
        ort.InferenceSession(file, session_options("fp32", 1)).run(None, given) for file in (before, after)
    )
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[0][:, :, START:], given["own"])


def test_an_engine_that_changes_nothing_in_place_is_its_own_graph(tmp_path: Path) -> None:
    assert with_cache_updates({}, tmp_path / "memory.onnx", tmp_path) == tmp_path / "memory.onnx"


@pytest.mark.parametrize(
    "model",
    [scattered(where()[:, :, ::-1]), scattered(where()[:1].repeat(BATCH, 0)), scattered(where(), "Where")],
    ids=["backwards", "one batch twice", "another operator"],
)
def test_others_are_refused(model: ModelProto) -> None:
    operator = model.graph.node[0].op_type
    with pytest.raises(
        PlanError, match=rf"^step.onnx: written: got {operator} for a state that a pass changes, expected "
    ):
        use_cache_updates(model, IN_PLACE, "step.onnx")
