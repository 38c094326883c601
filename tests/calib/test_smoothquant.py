"""SmoothQuant: the formula against a loop, and that an engine computes the same as before with its outliers gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper

from videossm.calib.graph import add_constant, module_of
from videossm.calib.linears import Found, find_linears
from videossm.calib.observers import Codes, weight_scales
from videossm.calib.qdq import quantize
from videossm.calib.smoothquant import BOUNDS, smooth, smoothing_scale
from videossm.models.videossm.presets import test as small_preset
from videossm.runtime.manifest import Layers

Arrays = dict[str, NDArray[Any]]

TOLERANCE = 1e-6  # relative error of an engine's outputs in the Frobenius norm
# Linears whose input is the output of an affine norm that nothing else reads.
FOLDED = {f"transformer.blocks.{i}.cross_attn.q" for i in range(small_preset().transformer.layers)}


def error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def channel_amax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.abs(values).max(tuple(range(values.ndim - 1)))


def spread(amax: NDArray[np.float32]) -> float:
    """Largest to median channel: how many of a format's levels an outlier takes from the others."""
    return float(amax.max() / np.median(amax))


class Engine:
    """A step, and what it computes."""

    def __init__(
        self, model: ModelProto, layers: Sequence[Layers], feeds: Callable[..., Arrays], run: Callable[..., Arrays]
    ) -> None:
        self.model, self._layers, self._run = model, layers, run
        self.feeds = feeds(model)
        self.linears = self.find().linears
        self.tensors = sorted({linear.input for linear in self.linears})
        self.before = self.run(also=self.tensors)
        self.amax = {tensor: channel_amax(self.before[tensor]) for tensor in self.tensors}

    def find(self) -> Found:
        return find_linears(self.model, "step", self._layers)

    def run(self, also: list[str]) -> Arrays:
        return self._run(self.model, self.feeds, also)

    def assert_unchanged(self) -> None:
        onnx.checker.check_model(self.model, full_check=True)
        after = self.run(also=[])
        errors = {name: error(values, self.before[name]) for name, values in after.items()}
        assert max(errors.values()) <= TOLERANCE, errors


@pytest.fixture
def engine(
    load_graph: Callable[[str], ModelProto],
    layers: Sequence[Layers],
    feeds: Callable[..., Arrays],
    run_graph: Callable[..., Arrays],
) -> Engine:
    return Engine(load_graph("step"), layers, feeds, run_graph)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_scale_against_a_loop(alpha: float) -> None:
    random = np.random.default_rng(1)
    x, w = (random.lognormal(0, 2, 6).astype(np.float32) for _ in range(2))
    x[1] = w[2] = 0.0
    x[3], w[3] = 1e9, 1e-9
    x[4], w[4] = 1e-9, 1e9
    expected = []
    for x_j, w_j in zip(x.tolist(), w.tolist(), strict=True):
        s = x_j**alpha / w_j ** (1 - alpha) if x_j and w_j else 1.0
        expected.append(min(max(s, BOUNDS[0]), BOUNDS[1]))
    np.testing.assert_allclose(smoothing_scale(x, w, alpha), expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_an_engine_computes_the_same(engine: Engine, alpha: float) -> None:
    renamed = smooth(engine.model, engine.linears, engine.amax, alpha)
    assert set(renamed) == set(engine.tensors)
    engine.assert_unchanged()


def test_folds_where_it_can(engine: Engine) -> None:
    before = {node.name: node for node in engine.model.graph.node}
    renamed = smooth(engine.model, engine.linears, engine.amax, 0.5)
    folded = {tensor for tensor, new in renamed.items() if new == tensor}
    assert {linear.name for linear in engine.linears if linear.input in folded} == FOLDED
    added = [node for node in engine.model.graph.node if node.name not in before]
    assert {node.op_type for node in added} == {"Mul"}
    assert {node.output[0] for node in added} == set(renamed.values()) - folded
    constants = {tensor.name for tensor in engine.model.graph.initializer}
    read = {name for node in engine.model.graph.node for name in node.input}
    assert constants <= read, "a constant that nothing reads"


def test_linears_are_found_again_under_their_names(engine: Engine) -> None:
    skipped = engine.find().skipped
    renamed = smooth(engine.model, engine.linears, engine.amax, 0.5)
    again = engine.find()
    assert [linear.name for linear in again.linears] == [linear.name for linear in engine.linears]
    assert [linear.input for linear in again.linears] == [renamed[linear.input] for linear in engine.linears]
    assert again.skipped == skipped


def test_outliers_shrink(engine: Engine) -> None:
    renamed = smooth(engine.model, engine.linears, engine.amax, 0.8)
    after = engine.run(also=sorted(renamed.values()))
    spreads = {old: (spread(engine.amax[old]), spread(channel_amax(after[new]))) for old, new in renamed.items()}
    assert all(after < before for before, after in spreads.values()), spreads


def test_is_quantised_afterwards_with_less_error(
    load_graph: Callable[[str], ModelProto],
    layers: Sequence[Layers],
    feeds: Callable[..., Arrays],
    run_graph: Callable[..., Arrays],
) -> None:
    """With outliers as those that trained models have: two channels of norms 50 times the others."""
    errors = []
    for alpha in (None, 0.5):
        model = load_graph("step")
        engine = with_outliers(model, layers, feeds, run_graph)
        if alpha is not None:
            smooth(model, engine.linears, engine.amax, alpha)
        linears = engine.find().linears
        read = engine.run(also=sorted({linear.input for linear in linears}))
        codes = {name: Codes(float(np.abs(read[name]).max()) / 127, 0) for name in {one.input for one in linears}}
        quantize(model, linears, codes, "int8", lambda weight: weight_scales(weight, "int8", "max"))
        errors.append(error(engine.run(also=[])["latent_next"], engine.before["latent_next"]))
    assert errors[1] <= errors[0] * 2 / 3, errors


def with_outliers(
    model: ModelProto, layers: Sequence[Layers], feeds: Callable[..., Arrays], run: Callable[..., Arrays]
) -> Engine:
    values = np.ones(small_preset().transformer.dim, np.float32)
    values[[3, 17]] *= 50
    add_constant(model, "outliers", values)
    for node in model.graph.node:
        if module_of(node).endswith(".norm3"):
            node.input[1] = "outliers"
    return Engine(model, layers, feeds, run)


def test_other_readers_are_left_alone(
    load_graph: Callable[[str], ModelProto],
    layers: Sequence[Layers],
    feeds: Callable[..., Arrays],
    run_graph: Callable[..., Arrays],
) -> None:
    """What else reads a tensor reads it as it was; then an affine norm that makes it must not change either."""
    model = load_graph("step")
    model.graph.node.append(helper.make_node("Neg", ["layer_norm_1"], ["other"], name="other"))
    (norm,) = (value for value in model.graph.value_info if value.name == "layer_norm_1")
    model.graph.output.append(norm)
    model.graph.output[-1].name = "other"
    engine = Engine(model, layers, feeds, run_graph)
    before = {node.name: list(node.input) for node in model.graph.node}
    assert len([one for one in before.values() if one[0] == "add_3.modulated"]) == 3, "the gates share it"
    linears = {linear.input: linear for linear in engine.linears}
    smoothed = {name: f"{name}.smooth" for name in ("layer_norm_1", "add_3.modulated")}
    assert smooth(model, [linears[name] for name in smoothed], engine.amax, 0.5) == smoothed
    after = {node.name: list(node.input) for node in model.graph.node}
    changed = {linears[old].node: new for old, new in smoothed.items()}
    assert {node: after[node][0] for node in changed} == changed
    assert {node for node in before if after[node] != before[node]} == changed.keys()
    engine.assert_unchanged()


def test_tensors_without_statistics_are_left_alone(engine: Engine) -> None:
    before = engine.model.SerializeToString()
    assert smooth(engine.model, engine.linears, {}, 0.5) == {}
    assert engine.model.SerializeToString() == before
