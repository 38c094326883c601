"""Scans that do not wait for each other are one, with the heads of all; the numbers stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from videossm.export.lowering import contrib, lower
from videossm.export.lowering.batched_heads import batch_heads
from videossm.export.schemas import DOMAIN, GATED_DELTA_SCAN
from videossm.runtime.backends.session import session_options

BATCH, TOKENS, HEADS, KEY, VALUE = 2, 5, 3, 4, 6
SHAPES = {
    "query": (BATCH, TOKENS, HEADS, KEY),
    "key": (BATCH, TOKENS, HEADS, KEY),
    "value": (BATCH, TOKENS, HEADS, VALUE),
    "decay": (BATCH, TOKENS, HEADS),
    "beta": (BATCH, TOKENS, HEADS),
    "state": (BATCH, HEADS, KEY, VALUE),
}
CUT = ("query", "key", "value")  # into heads, by a Reshape


def graph(
    layers: int, chained: bool = False, packed_as: tuple[int, ...] | None = None, scale: float = 0.5
) -> ModelProto:
    """`layers` scans on inputs [B, T, H * d]; `chained`: each from the state that the one before leaves.

    `packed_as`: the shape of the first key before it is cut, which Reshape makes as good a use of.
    """
    inputs, outputs, nodes, sizes = [], [], [], []
    for layer in range(layers):
        names = {}
        for kind, shape in SHAPES.items():
            names[kind] = f"{kind}.{layer}"
            if kind == "state" and chained and layer:
                names[kind] = f"last.{layer - 1}"
                continue
            packed = (*shape[:2], shape[2] * shape[3]) if kind in CUT else shape
            packed = packed_as if packed_as and kind == "key" and not layer else packed
            inputs.append(helper.make_tensor_value_info(names[kind], TensorProto.FLOAT, packed))
            if kind in CUT:
                sizes.append(helper.make_tensor(f"sizes.{kind}.{layer}", TensorProto.INT64, [4], shape))
                cut = f"{names[kind]}.cut"
                nodes.append(helper.make_node("Reshape", [names[kind], sizes[-1].name], [cut], name=cut))
                names[kind] = cut
        made = [f"output.{layer}", f"last.{layer}"]
        scan = helper.make_node(
            GATED_DELTA_SCAN,
            list(names.values()),
            made,
            name=f"scan.{layer}",
            domain=DOMAIN,
            scale=scale,
            normalize_key=1,
        )
        nodes.append(scan)
        outputs += [
            helper.make_tensor_value_info(made[0], TensorProto.FLOAT, SHAPES["value"]),
            helper.make_tensor_value_info(made[1], TensorProto.FLOAT, SHAPES["state"]),
        ]
    whole = helper.make_graph(nodes, "scans", inputs, outputs, sizes)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    return onnx.shape_inference.infer_shapes(helper.make_model(whole, opset_imports=opsets, ir_version=10))


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def outputs_only(model: ModelProto) -> ModelProto:
    """Nothing reads the states."""
    kept = [value for value in model.graph.output if value.name.startswith("output")]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model


def two_groups(model: ModelProto) -> ModelProto:
    """The last two scans have another scale."""
    for scan in scans(model)[-2:]:
        next(a for a in scan.attribute if a.name == "scale").f = 0.25
    return model


def scans(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == GATED_DELTA_SCAN]


def run(model: ModelProto) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(
        model.SerializeToString(), session_options("fp32", 1), providers=["CPUExecutionProvider"]
    )
    chance = np.random.default_rng(0)
    given = {}
    for value in session.get_inputs():
        drawn = chance.standard_normal(value.shape, dtype=np.float32)
        given[value.name] = -np.abs(drawn) if value.name.startswith("decay") else drawn
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.usefixtures("native_scans")
@pytest.mark.parametrize(
    "model",
    [
        graph(3),
        graph(3, chained=True),
        graph(2, packed_as=(TOKENS, BATCH, HEADS * KEY)),
        outputs_only(graph(2)),
        two_groups(outputs_only(graph(4))),
    ],
    ids=["apart", "chained", "odd", "outputs only", "two groups"],
)
def test_the_numbers_are_those_of_each_alone(model: ModelProto) -> None:
    batched = copied(model)
    batch_heads(batched)
    onnx.checker.check_model(batched, full_check=True)
    names = [node.name for node in batched.graph.node]
    assert len(scans(batched)) < len(scans(model)) or "last.0" in scans(model)[1].input, "none was batched"
    assert len(set(names)) == len(names)
    alone = run(lower(copied(model), "native"))  # which batches none
    for lowering in ("native", "standard", "contrib"):
        together = run(lower(copied(batched), lowering))
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            np.testing.assert_allclose(together[name], value, rtol=1e-5, atol=1e-5, err_msg=f"{lowering}: {name}")


def test_layers_are_joined_before_they_are_cut_into_heads() -> None:
    model = graph(3)
    batch_heads(model)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds == {GATED_DELTA_SCAN: 1, "Concat": 6, "Reshape": 3, "Split": 2}
    described = {value.name for value in model.graph.value_info} | {value.name for value in model.graph.output}
    assert all(name in described for node in model.graph.node for name in node.output), "each has a shape"
    (scan,) = scans(model)
    assert {a.name: helper.get_attribute_value(a) for a in scan.attribute} == {"scale": 0.5, "normalize_key": 1}


def test_one_tensor_along_two_axes() -> None:
    """Keys that are the states, too: their heads lie elsewhere."""
    model = graph(2)
    for scan in scans(model):
        scan.input[5] = scan.input[1]
    for value in model.graph.value_info:
        if value.name.startswith("key"):
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, SHAPES["state"]))
    batch_heads(model)
    (scan,) = scans(model)
    assert scan.input[1] != scan.input[5]


def test_a_key_that_is_its_query_is_joined_once() -> None:
    model = graph(3)
    for scan in scans(model):
        scan.input[0] = scan.input[1]
    batch_heads(model)
    assert Counter(node.op_type for node in model.graph.node)["Concat"] == 5


def test_what_is_cut_otherwise_is_joined_afterwards() -> None:
    model = graph(2, packed_as=(TOKENS, BATCH, HEADS * KEY))
    batch_heads(model)
    assert Counter(node.op_type for node in model.graph.node)["Reshape"] == 2 + 2  # keys apart; queries, values joined


def _chained(model: ModelProto) -> ModelProto:
    return graph(2, chained=True)


def _another_scale(model: ModelProto) -> ModelProto:
    next(a for a in scans(model)[0].attribute if a.name == "scale").f = 0.25
    return model


def _unread(model: ModelProto) -> ModelProto:
    del model.graph.output[0]
    return model


def _with_a_body(model: ModelProto) -> ModelProto:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["decay.0"], ["chosen"], then_branch=body, else_branch=body))
    return model


@pytest.mark.parametrize("change", [_chained, _another_scale, _unread, _with_a_body])
def test_scans_that_do_not_agree_stay_apart(change) -> None:
    model = change(graph(2))
    before = list(model.graph.node)
    batch_heads(model)
    assert list(model.graph.node) == before


@pytest.mark.parametrize(("least_values", "count"), [(BATCH * TOKENS * HEADS * VALUE, 1), (1000, 3)])
def test_small_scans_stay_apart_on_onnx_runtime(monkeypatch: pytest.MonkeyPatch, least_values: int, count: int) -> None:
    monkeypatch.setattr(contrib, "LEAST_VALUES", least_values)
    model = lower(graph(3), "contrib")
    assert [node.op_type for node in model.graph.node].count("LinearAttention") == count


@pytest.mark.parametrize(("lowering", "count"), [("native", 3), ("plugin", 1)])
def test_which_lowerings_join(lowering: str, count: int) -> None:
    assert len(scans(lower(graph(3), lowering))) == count
