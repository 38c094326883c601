"""Looking into an engine changes nothing of what it computes, and shows what an independent session shows."""

from __future__ import annotations

from itertools import islice

import numpy as np
import onnx
import pytest

from videossm.calib import plans
from videossm.calib.backend import ShadowBackend, TappedBackend
from videossm.calib.linears import find_linears
from videossm.runtime import BackendError, Rollout
from videossm.runtime.backends.memory import HostBuffer
from videossm.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine

PROMPT = "red circle"
TOLERANCE = 1e-5  # between two sessions that fuse differently, of values around 1


class Seen:
    """Keeps what every run shows."""

    def __init__(self):
        self.runs = []

    def __call__(self, engine, *tensors):
        self.runs.append((engine, *({name: values.copy() for name, values in each.items()} for each in tensors)))


def run_once(backend, plan, engine, feeds):
    """One run of an engine on `feeds`; returns its outputs."""
    spec = plan.manifest.engines[engine]
    inputs = {tensor.name: HostBuffer(feeds[tensor.name].copy()) for tensor in spec.inputs}
    outputs = {tensor.name: HostBuffer(np.zeros(tensor.shape, tensor.host_dtype)) for tensor in spec.outputs}
    backend.load(engine, spec, plan.path / spec.file).bind(inputs, outputs).run()
    return {name: buffer.array for name, buffer in outputs.items()}


def outside(plan, engine, folder, monkeypatch):
    """The engine's graph in `folder`, its weights in a file beside it."""
    monkeypatch.setattr(plans, "INLINE_BYTES", 0)
    plans.save_graph(onnx.load(plan.path / f"{engine}.onnx"), folder / f"{engine}.onnx")
    assert (folder / f"{engine}.onnx.data").stat().st_size > 0
    return folder / f"{engine}.onnx"


@pytest.mark.parametrize("engine", ["text_encoder", "step"])
def test_tapped_tensors_are_those_of_an_independent_run(test_plan, load_graph, feeds, run_graph, engine):
    model = load_graph(engine)
    names = sorted({node.input[0] for node in model.graph.node if node.op_type in ("MatMul", "Gelu")})
    expected = run_graph(model, feeds(model), names)
    seen = Seen()
    outputs = run_once(TappedBackend({engine: names}, seen), test_plan, engine, feeds(model))
    ((ran, tensors),) = seen.runs
    assert (ran, sorted(tensors)) == (engine, names)
    for name, values in {**tensors, **outputs}.items():
        np.testing.assert_allclose(values, expected[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_a_tap_may_be_an_output(test_plan, load_graph, feeds):
    seen = Seen()
    backend = TappedBackend({"step": ["latent_next"]}, seen)
    outputs = run_once(backend, test_plan, "step", feeds(load_graph("step")))
    assert np.array_equal(seen.runs[0][1]["latent_next"], outputs["latent_next"])
    assert outputs["latent_next"].any()


@pytest.mark.parametrize("others", [[], ["gelu", "latent_next"]], ids=["alone", "with others"])
def test_a_tap_may_be_an_input(test_plan, load_graph, feeds, others):
    """As a prompt's keys are, which attention quantises; the graph keeps its outputs, and they their values."""
    model, key = load_graph("step"), "prompt.0.key"
    inputs, seen = feeds(model), Seen()
    outputs = run_once(TappedBackend({"step": [*others, key]}, seen), test_plan, "step", inputs)
    ((engine, tensors),) = seen.runs
    assert (engine, set(tensors)) == ("step", {key, *others})
    assert np.array_equal(tensors[key], inputs[key]) and inputs[key].any()
    expected = run_once(TappedBackend({}, Seen()), test_plan, "step", inputs)
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_a_tapped_input_is_that_of_every_pass(test_plan, load_graph, feeds):
    """Bound once, then given other values."""
    model, spec, seen = load_graph("step"), test_plan.manifest.engines["step"], Seen()
    inputs = {name: HostBuffer(values) for name, values in feeds(model).items()}
    outputs = {tensor.name: HostBuffer(np.zeros(tensor.shape, tensor.host_dtype)) for tensor in spec.outputs}
    engine = TappedBackend({"step": ["prompt.1.value"]}, seen).load("step", spec, test_plan.path / spec.file)
    bound = engine.bind(inputs, outputs)
    for factor in (1, 2):
        inputs["prompt.1.value"].write(np.full(inputs["prompt.1.value"].shape, factor, np.float32))
        bound.run()
    assert [np.unique(tensors["prompt.1.value"]).tolist() for _, tensors in seen.runs] == [[1.0], [2.0]]


def test_weights_beside_a_tapped_graph(test_plan, load_graph, feeds, tmp_path, monkeypatch):
    files = {"step": outside(test_plan, "step", tmp_path, monkeypatch)}
    seen, inputs = Seen(), feeds(load_graph("step"))
    for given in (None, files):
        run_once(TappedBackend({"step": ["gelu"]}, seen, given), test_plan, "step", inputs)
    assert np.array_equal(*(tensors["gelu"] for _, tensors in seen.runs))


def test_another_graph_in_place_of_the_plans(test_plan, load_graph, layers, feeds, tmp_path):
    model = load_graph("step")
    (weight,) = (t for t in model.graph.initializer if t.name == find_linears(model, "step", layers).linears[-1].weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros(list(weight.dims), np.float32), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    outputs = [
        run_once(TappedBackend({}, Seen(), files), test_plan, "step", feeds(model))["latent_next"]
        for files in (None, {"step": tmp_path / "other.onnx"})
    ]
    assert not np.array_equal(*outputs)


def test_an_engine_that_nobody_looks_into_is_a_plain_one(test_plan):
    backend, spec = TappedBackend({"step": ["gelu"]}, Seen()), test_plan.manifest.engines["decoder"]
    assert type(backend.load("decoder", spec, test_plan.path / spec.file)) is OnnxRuntimeEngine


def test_a_tapped_graph_that_cannot_run(test_plan, load_graph, tmp_path):
    model = load_graph("step")
    model.graph.node[0].op_type = "Nonsense"
    onnx.save(model, tmp_path / "step.onnx")
    backend = TappedBackend({"step": ["gelu"]}, Seen(), {"step": tmp_path / "step.onnx"})
    with pytest.raises(BackendError, match=r"step\.onnx: ONNX Runtime .* cannot load it .*Nonsense") as error:
        backend.load("step", test_plan.manifest.engines["step"], test_plan.path / "step.onnx")
    assert "\n" not in str(error.value)


def test_a_shadow_leaves_the_leaders_frames_bit_identical(test_plan, altered, scale_weight, tmp_path):
    """Past the window: the shadow must touch neither the ring nor the memory."""
    other = altered(tmp_path, "step", scale_weight("step", "transformer.blocks.0.ffn.2", 5))
    seen = Seen()
    shadow = ShadowBackend(
        OnnxRuntimeBackend("cpu", 1), OnnxRuntimeBackend("cpu", 1), {"step": other.path / "step.onnx"}, seen
    )
    led, alone = Rollout(test_plan, PROMPT, 3, backend=shadow), Rollout(test_plan, PROMPT, 3, threads=1)
    for a, b in islice(zip(led, alone, strict=True), 6):
        assert np.array_equal(a.frames, b.frames), f"chunk {a.index}"
    assert [engine for engine, *_ in seen.runs] == ["step"] * 6 * len(test_plan.manifest.passes)
    for _, _, first, second in seen.runs:
        assert not np.array_equal(first["present.1.key"], second["present.1.key"])


def test_a_shadow_sees_the_inputs_of_the_pass(test_plan, load_graph, run_graph):
    """Its outputs are those of an independent run on what `on_run` says was the input."""
    seen, model = Seen(), load_graph("step")
    shadow = ShadowBackend(
        OnnxRuntimeBackend("cpu", 1), OnnxRuntimeBackend("cpu", 1), {"step": test_plan.path / "step.onnx"}, seen
    )
    list(islice(Rollout(test_plan, PROMPT, 3, backend=shadow), 5))
    for _, inputs, first, second in seen.runs[-4:]:
        expected = run_graph(model, inputs)
        for name, values in second.items():
            assert np.array_equal(first[name], values), f"{name}: the same graph twice"
            np.testing.assert_allclose(values, expected[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
