"""Plans of lower precision: only what was chosen is rewritten, all else is the same file, and they roll out."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import onnx
import pytest

from videossm.calib import plans
from videossm.calib.calibrate import calibrate
from videossm.calib.calibration import Calibration, CalibrationError
from videossm.calib.plans import (
    CALIBRATION_FILE,
    PrecisionError,
    add_to_plan,
    candidates,
    check_source,
    in_precision,
    quantised_engines,
    quantized_graph,
    write_half,
    write_quantized,
)
from videossm.runtime import BackendError, Plan, Rollout
from videossm.runtime.plan import write_manifest

# Largest relative error of the first chunk's latents; random weights spread values evenly, which suits int8.
TOLERANCE = {"int8": 0.05, "fp8": 0.2, "fp16": 0.01}
FFN = "transformer.blocks.0.ffn.2"


def every_layer(plan):
    linears, products, _ = candidates(plan)
    return {linear.name for linear in linears} | {product.name for product in products}


def latents_of(plan, chunks=1):
    rollout = Rollout(plan, "red circle", 7, threads=1)
    return np.stack([rollout.sample for _ in islice(rollout, chunks)])


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def operators(path):
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def empty(folder, name):
    (folder / name).mkdir()
    return folder / name


def quantised(plan, calibration, folder, chosen=None):
    plan = write_quantized(plan, calibration, every_layer(plan) if chosen is None else chosen, folder)
    assert plan == Plan.open(folder)
    return plan


def test_no_layer_of_another_engine_is_a_candidate(test_plan):
    """All of them are listed, each with the reason of its engine."""
    linears, products, skipped = candidates(test_plan)
    kept = test_plan.manifest.lower_precision.kept_engines
    assert {layer.engine for layer in (*linears, *products)} == set(quantised_engines(test_plan.manifest)) == {"step"}
    others = {(layer.engine, layer.reason) for layer in skipped if layer.engine in kept}
    assert others == {(engine, kept[engine]) for engine in ("text_encoder", "decoder", "decoder_first")}
    names = {layer.name for layer in skipped}
    assert {"text_encoder.layers.0.qkv", "transformer.text_embedding.2", "transformer.blocks.1.cross_attn.v"} <= names


@pytest.fixture(scope="module")
def fp8_calibration(test_plan, settings_of):
    return calibrate(test_plan, "fp8", settings_of(), lambda: None)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantised_plan_opens_and_rolls_out(test_plan, int8_calibration, fp8_calibration, tmp_path, precision):
    calibration = int8_calibration if precision == "int8" else fp8_calibration
    chosen = {linear.name for linear in candidates(test_plan)[0]}
    plan = quantised(test_plan, calibration, tmp_path, chosen)
    assert plan.manifest.precision == precision
    error = relative_error(latents_of(plan), latents_of(test_plan))
    assert 0 < error < TOLERANCE[precision]
    pairs = Counter(linear.engine for linear in candidates(test_plan)[0])
    for engine in quantised_engines(plan.manifest):
        assert operators(plan.path / f"{engine}.onnx")["QuantizeLinear"] == pairs[engine]


def test_with_attention(test_plan, int8_calibration, tmp_path):
    plan = quantised(test_plan, int8_calibration, tmp_path)
    assert "Attention" not in operators(plan.path / "step.onnx")
    assert 0 < relative_error(latents_of(plan), latents_of(test_plan)) < TOLERANCE["int8"]


def test_what_is_not_quantised_is_byte_equal(test_plan, int8_calibration, tmp_path):
    plan = quantised(test_plan, int8_calibration, tmp_path)
    for name in (
        *(f"{engine}.onnx" for engine in test_plan.manifest.lower_precision.kept_engines),
        test_plan.tokenizer_file.name,
    ):
        assert (plan.path / name).read_bytes() == (test_plan.path / name).read_bytes(), name
    ignored = {"precision", "files", "checksum"}
    before, after = (p.manifest.model_dump(exclude=ignored) for p in (test_plan, plan))
    assert before == after
    assert set(plan.manifest.files) == {*test_plan.manifest.files, CALIBRATION_FILE}


def test_only_the_chosen_layers(test_plan, int8_calibration, tmp_path):
    plan = quantised(test_plan, int8_calibration, tmp_path, {FFN})
    assert operators(plan.path / "step.onnx")["QuantizeLinear"] == 1
    assert operators(plan.path / "text_encoder.onnx")["QuantizeLinear"] == 0
    names = {t.name for t in onnx.load(plan.path / "step.onnx").graph.initializer}
    assert f"{FFN}.weight.q" in names


def test_none_chosen_computes_the_same(test_plan, int8_calibration, tmp_path):
    plan = quantised(test_plan, int8_calibration, tmp_path, set())
    assert np.array_equal(latents_of(plan), latents_of(test_plan))


def test_the_scales_in_the_graph_are_those_of_the_calibration(test_plan, int8_calibration):
    model = quantized_graph(test_plan, "step", int8_calibration, {FFN})
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    (node,) = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    expected = int8_calibration.tensors["step"][node.input[0]]
    assert constants[node.input[1]] == np.float32(expected.scale)
    assert constants[node.input[2]] == expected.zero_point != 0, "GELU's output is almost of one sign"


def test_a_calibration_read_from_a_plan_makes_the_same_engines(test_plan, int8_calibration, tmp_path):
    first = quantised(test_plan, int8_calibration, empty(tmp_path, "first"))
    again = Calibration.load(first.path / CALIBRATION_FILE)
    assert again == int8_calibration
    second = quantised(test_plan, again, empty(tmp_path, "second"))
    assert first.manifest.files == second.manifest.files


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (
            lambda tensors: {"step": {name: scale for name, scale in tensors["step"].items() if name != "gelu"}},
            "tensors.step: got no gelu, expected its scale",
        ),
        (lambda tensors: {}, r"tensors.step: got no add_3\.modulated, expected its scale"),
    ],
    ids=["of a tensor", "of an engine"],
)
def test_a_calibration_without_the_scale(test_plan, int8_calibration, tmp_path, left, message):
    lacking = int8_calibration.model_copy(update={"tensors": left(int8_calibration.tensors)})
    with pytest.raises(CalibrationError, match=message):
        quantised(test_plan, lacking, tmp_path)


def test_smoothquant_channels_that_are_too_few(test_plan, int8_calibration, settings_of, tmp_path):
    tensors = dict(int8_calibration.tensors["step"])
    tensors["gelu"] = tensors["gelu"].model_copy(update={"channel_amax": (1.0, 2.0)})
    edited = int8_calibration.model_copy(
        update={
            "settings": settings_of(smoothquant=0.5),
            "tensors": {**int8_calibration.tensors, "step": tensors},
        }
    )
    with pytest.raises(CalibrationError, match=r"tensors\.step\.gelu\.channel_amax: got 2 channels, expected 96"):
        quantised(test_plan, edited, tmp_path)


def test_fp16_opens_and_rolls_out(test_plan, tmp_path):
    write_half(test_plan, "fp16", tmp_path)
    plan = Plan.open(tmp_path)
    assert plan.manifest.precision == "fp16"
    dtypes = {tensor.name: tensor.dtype for tensor in plan.manifest.engines["step"].inputs}
    assert (dtypes["window.0.value"], dtypes["latent"], dtypes["past.0.memory"]) == ("float16", "float32", "float32")
    states = {state.name: state.dtype for state in plan.manifest.states}
    assert (states["0.key"], states["0.memory"], states["cache.0"]) == ("float16", "float32", "float16")
    assert plan.manifest.stream_identity == test_plan.manifest.stream_identity
    assert 0 < relative_error(latents_of(plan), latents_of(test_plan)) < TOLERANCE["fp16"]


def test_bf16_opens_and_says_what_cannot_run_it(test_plan, tmp_path):
    write_half(test_plan, "bf16", tmp_path)
    plan = Plan.open(tmp_path)
    assert {tensor.dtype for tensor in plan.manifest.engines["text_encoder"].outputs} == {"bfloat16"}
    with pytest.raises(BackendError, match="got cpu for a plan in bf16, expected cuda:N"):
        latents_of(plan)


def test_a_source_of_lower_precision(test_plan, tmp_path):
    write_half(test_plan, "fp16", tmp_path)
    with pytest.raises(PrecisionError, match="in fp16, expected fp32"):
        check_source(Plan.open(tmp_path))


def test_files_that_are_added_become_part_of_the_plan(test_plan, int8_calibration, tmp_path):
    plan = quantised(test_plan, int8_calibration, tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("a page")
    added = add_to_plan(plan)
    assert added == Plan.open(tmp_path)
    assert added.identity != plan.identity
    assert set(added.manifest.files) == {*plan.manifest.files, "report/report.html"}
    assert added.manifest.precision == "int8"


@pytest.fixture
def outside(test_plan, tmp_path, monkeypatch):
    """The small plan with the weights of every engine in a file beside it, as a large one has them."""
    monkeypatch.setattr(plans, "INLINE_BYTES", 0)
    folder = empty(tmp_path, "outside.plan")
    for _, spec in test_plan.manifest.engines.items():
        plans.save_graph(onnx.load(test_plan.path / spec.file), folder / spec.file)
    (folder / test_plan.tokenizer_file.name).write_bytes(test_plan.tokenizer_file.read_bytes())
    write_manifest(folder, test_plan.values())
    return Plan.open(folder)


def files_of(model):
    """Names of the files beside a graph that hold its weights."""
    return {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}


@pytest.mark.parametrize("smoothquant", [None, 0.5], ids=["plain", "smoothquant"])
def test_weights_beside_the_graph(test_plan, outside, settings_of, tmp_path, monkeypatch, smoothquant):
    """Calibrated, written and rolled out, bit by bit what the plan with its weights inside makes."""
    settings = settings_of(smoothquant=smoothquant, quantize_attention=True, chunks=2)
    calibration = calibrate(outside, "int8", settings, lambda: None)
    plan = quantised(outside, calibration, empty(tmp_path, "int8.plan"))
    for name in ("text_encoder.onnx", "step.onnx", "decoder.onnx"):
        assert files_of(onnx.load(plan.path / name, load_external_data=False)) == {f"{name}.data"}
    for name in ("text_encoder.onnx", "text_encoder.onnx.data", "decoder.onnx", "decoder.onnx.data", "memory.onnx"):
        assert plan.manifest.files[name] == outside.manifest.files[name]
    assert set(plan.manifest.files) == {*outside.manifest.files, CALIBRATION_FILE}
    monkeypatch.undo()
    inside = calibrate(test_plan, "int8", settings, lambda: None)
    assert inside.tensors == calibration.tensors
    expected = quantised(test_plan, inside, empty(tmp_path, "inside.plan"))
    assert np.array_equal(latents_of(plan, 5), latents_of(expected, 5))


def test_half_with_weights_beside_the_graph(test_plan, outside, tmp_path, monkeypatch):
    write_half(outside, "fp16", empty(tmp_path, "fp16.plan"))
    plan = Plan.open(tmp_path / "fp16.plan")
    assert "step.onnx.data" in plan.manifest.files
    monkeypatch.undo()
    write_half(test_plan, "fp16", empty(tmp_path, "inside.plan"))
    assert np.array_equal(latents_of(plan, 5), latents_of(Plan.open(tmp_path / "inside.plan"), 5))


def test_another_graph_of_an_engine_in_the_plans_precision(test_plan, int8_calibration, tmp_path):
    """As the plan made it of its own graph: typed in half, or as it is; what is in 8 bits has no such graph."""
    half = write_half(test_plan, "fp16", empty(tmp_path, "fp16.plan"))
    int8 = quantised(test_plan, int8_calibration, empty(tmp_path, "int8.plan"))
    for engine in ("memory", "step"):
        graph = test_plan.path / f"{engine}.onnx"
        assert in_precision(test_plan, engine, graph) == onnx.load(graph)
        assert in_precision(half, engine, graph) == onnx.load(half.path / f"{engine}.onnx")
    assert in_precision(int8, "memory", test_plan.path / "memory.onnx") == onnx.load(test_plan.path / "memory.onnx")
    with pytest.raises(PrecisionError, match=r"^plugins: got them for the engine step in int8, expected fp32, fp16 or"):
        in_precision(int8, "step", test_plan.path / "step.onnx")
