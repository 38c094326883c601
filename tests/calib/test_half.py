"""Typed half graphs: their types, where they stay fp32, and, by emulation, what they and those islands are worth."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from videossm.calib.emulate import emulate, round_tensors
from videossm.calib.graph import SCOPES, module_of
from videossm.calib.half import ELEMENT, HalfError, to_half
from videossm.runtime import Plan
from videossm.runtime.backends.session import session_options
from videossm.runtime.manifest import EngineSpec, Input, Manifest, Output, Precision, State, TensorSpec

Arrays = dict[str, NDArray[Any]]
FLOATS = {TensorProto.FLOAT, *ELEMENT.values()}
ENGINES = ["text_encoder", "turn", "step", "memory", "decoder_first", "decoder"]
ISLANDS = ("levels", "memory.decay+beta", "head.head")
FAR = 4000  # a position late in a long video, where positions are those in the video

# Largest relative error of an output, and, in brackets, the largest measured over the engines.
TOLERANCE = {"fp16": 1e-3, "bf16": 8e-3}  # (8.0e-4), (5.2e-3)
# Of the latent's change in one step: (1.2e-4), (9.8e-4).
STEP_TOLERANCE = {"fp16": 2e-4, "bf16": 1.6e-3}
PIXEL_TOLERANCE = 1  # of 255
# How much worse at least a step gets with an island in half.
WORSE = {"angles": 10.0, "gates": 4.0, "residual": 1.3, "sampler": 1.7}


@pytest.fixture(params=["fp16", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def absolute_plan(small_plan_in: Callable[..., Plan]) -> Plan:
    """Whose positions are counted from the video's start, and so have no table."""
    return small_plan_in("contrib", "absolute")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def graph_of(plan: Plan, engine: str) -> ModelProto:
    return onnx.load(plan.path / f"{engine}.onnx")


def inputs_of(plan: Plan, engine: str, first_position: int = 0) -> Arrays:
    """Random inputs of an engine as they come in a rollout, positions counted from `first_position`."""
    rng = np.random.default_rng(0)
    sizes = plan.manifest.window
    assert sizes is not None
    window = sizes.chunks * sizes.chunk_frames

    def values(tensor: TensorSpec) -> NDArray[Any]:
        shape = tensor.shape
        made: dict[str, Callable[[], Any]] = {
            "input_ids": lambda: rng.integers(2, 30, shape),
            "attention_mask": lambda: np.arange(shape[1]) < 5,
            "sigma": lambda: 0.9,
            "sigma_next": lambda: 0.6,
            "rho": lambda: 0.5,
            "slot_position": lambda: first_position + np.arange(window),
            "frame_position": lambda: first_position + window + np.arange(shape[0]),
            "decay": lambda: -np.exp(rng.standard_normal(shape) - 3),
            "beta": lambda: rng.random(shape),
        }
        make = made.get(tensor.name.rpartition(".")[2], lambda: rng.standard_normal(shape))
        return np.broadcast_to(np.asarray(make(), tensor.dtype), shape)

    return {tensor.name: values(tensor) for tensor in plan.manifest.engines[engine].inputs}


def run(model: ModelProto, inputs: Arrays) -> Arrays:
    """What ONNX Runtime computes from fp32 inputs, whatever the graph's own types."""
    options = session_options("fp16", 1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    feeds = {value.name: inputs[value.name].astype(kinds.get(value.type, np.int64)) for value in session.get_inputs()}
    return dict(zip((value.name for value in session.get_outputs()), session.run(None, feeds), strict=True))


def errors(got: Arrays, expected: Arrays) -> dict[str, float]:
    """Relative errors in the Frobenius norm."""
    wide = {name: (got[name].astype(np.float64), expected[name].astype(np.float64)) for name in expected}
    return {name: float(np.linalg.norm(a - b) / np.linalg.norm(b)) for name, (a, b) in wide.items()}


def step_errors(plan: Plan, model: ModelProto, first_position: int = 0) -> dict[str, float]:
    """Of a step's outputs against the fp32 engine's, and of `change`, what the step does to the latent."""
    inputs = inputs_of(plan, "step", first_position)
    got, expected = run(model, inputs), run(graph_of(plan, "step"), inputs)
    for outputs in (got, expected):
        outputs["change"] = outputs["latent_next"] - inputs["latent"]
    return errors(got, expected)


def elements(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor that has one."""
    found = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for values in (model.graph.input, model.graph.value_info, model.graph.output):
        found.update((value.name, value.type.tensor_type.elem_type) for value in values)
    return found


def made_by(model: ModelProto, *modules: str) -> set[str]:
    """Tensors made in modules of these names."""
    found = {name: module_of(node) for node in model.graph.node for name in node.output}
    return {name for name, module in found.items() if any(f".{part}." in f".{module}." for part in modules)}


def read_by(model: ModelProto, *kinds: str) -> set[str]:
    """First inputs of all nodes of these kinds."""
    return {node.input[0] for node in model.graph.node if node.op_type in kinds}


def test_the_graph_is_valid_and_strongly_typed(test_plan: Plan, engine: str, precision: str) -> None:
    """No node reads or makes two floating types, but for casts."""
    model = to_half(graph_of(test_plan, engine), engine, test_plan.manifest, precision)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    types = elements(model)
    assert elements(inferred).items() >= types.items(), "values are listed with other types than they have"
    for node in model.graph.node:
        if node.op_type != "Cast":
            mixed = {types[name] for name in (*node.input, *node.output) if types.get(name) in FLOATS}
            assert len(mixed) <= 1, f"{node.op_type} {node.name}: got {mixed}"


def test_what_a_plan_sees(test_plan: Plan, engine: str, precision: str) -> None:
    """Prompt state, window and caches are half; latents, levels, gates and memories fp32; the rest as it was."""
    before = graph_of(test_plan, engine)
    after = to_half(before, engine, test_plan.manifest, precision)
    for old, new in zip(
        [*before.graph.input, *before.graph.output], [*after.graph.input, *after.graph.output], strict=True
    ):
        is_half = old.name.endswith((".key", ".value", ".seen_key", ".seen_value")) or old.name.startswith("cache")
        expected = ELEMENT[precision] if is_half else old.type.tensor_type.elem_type
        assert (new.name, new.type.tensor_type.elem_type) == (old.name, expected)
        assert new.type.tensor_type.shape == old.type.tensor_type.shape, old.name


def test_products_are_half_and_islands_fp32(test_plan: Plan, precision: str) -> None:
    model = to_half(graph_of(test_plan, "step"), "step", test_plan.manifest, precision)
    types = elements(model)
    fp32 = {"Exp", "Log", "LayerNormalization", "RMSNormalization", "Split", "Sub"}
    islands, packed = made_by(model, *ISLANDS), made_by(model, "self_attn.q+k+v")
    residual = read_by(model, "LayerNormalization")
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    read_out = {node.output[0] for node in products if re.match(r"past\.\d+\.memory", node.input[1])}
    assert len(read_out) == 2, "the product of a block's queries with its memory"
    for node in model.graph.node:
        name = node.output[0]
        if types[name] not in FLOATS:
            continue
        if (node.op_type in fp32 and name not in packed) or name in islands | residual | read_out:
            assert types[name] == TensorProto.FLOAT, f"{node.op_type} {name}: got half"
        elif node.op_type in ("MatMul", "Gemm", "Attention", "RotaryEmbedding"):
            assert types[name] == ELEMENT[precision], f"{node.op_type} {name}: got fp32"
    halves = [node for node in products if types[node.output[0]] != TensorProto.FLOAT]
    assert len(halves) == 1 + 2 * 7, "patches and seven linears a block"


def test_memory_casts_its_inputs_and_no_more(test_plan: Plan, precision: str) -> None:
    before = graph_of(test_plan, "memory")
    after = to_half(before, "memory", test_plan.manifest, precision)
    added = [node for node in after.graph.node if node.op_type == "Cast"]
    keyed = sorted(v.name for v in before.graph.input if v.name.endswith((".key", ".value")))
    assert sorted(node.input[0] for node in added) == keyed
    assert len(after.graph.node) == len(before.graph.node) + len(added)


def test_a_product_of_an_fp32_engine_is_fp32(precision: str) -> None:
    """Anywhere else it is half."""
    graph = small_graph(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    manifests = small_manifest(fp32_engines=("engine",)), small_manifest()
    found = [elements(to_half(graph, "engine", manifest, precision))["product"] for manifest in manifests]
    assert found == [TensorProto.FLOAT, ELEMENT[precision]]


@pytest.mark.parametrize(
    ("module", "patterns", "kept"),
    [
        ("block.0.gate", (r"gate",), True),
        ("block.0.gate", (r"0\.gate",), True),
        ("block.0.gate.out", (r"gate",), True),
        ("block.0.gates", (r"gate", r"ate"), False),
        ("block.0.gate", (), False),
        ("levels.sigma", (), True),
        ("block.levels", (), False),
    ],
)
def test_modules_that_stay_fp32(precision: str, module: str, patterns: tuple[str, ...], kept: bool) -> None:
    """Those of which some whole parts of the name match, and what is looked up by a scalar of a pass."""
    graph = small_graph(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    graph.graph.node[0].metadata_props.add(key=SCOPES, value=repr(["", module, "product"]))
    found = elements(to_half(graph, "engine", small_manifest(fp32_modules=patterns), precision))["product"]
    assert found == (TensorProto.FLOAT if kept else ELEMENT[precision])


def test_a_pattern_that_is_none() -> None:
    graph = small_graph(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    with pytest.raises(HalfError, match=r"^lower_precision\.fp32_modules\.0: got '\('.* expected a regular expression"):
        to_half(graph, "engine", small_manifest(fp32_modules=("(",)), "fp16")


def test_a_product_that_reads_an_fp32_state(precision: str) -> None:
    graph = small_graph(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    graph.graph.node[0].input[0] = "past"
    graph.graph.input[0].name = "past"
    found = [elements(to_half(graph, "engine", small_manifest(half), precision))["product"] for half in (False, True)]
    assert found == [TensorProto.FLOAT, ELEMENT[precision]]


def test_pixels_are_fp32_from_the_last_convolution_on(test_plan: Plan, precision: str) -> None:
    model = to_half(graph_of(test_plan, "decoder"), "decoder", test_plan.manifest, precision)
    types = elements(model)
    last = max(i for i, node in enumerate(model.graph.node) if node.op_type == "Conv")
    assert {types[node.input[0]] for node in model.graph.node[last + 2 :]} == {TensorProto.FLOAT}
    convolutions = {types[node.output[0]] for node in model.graph.node if node.op_type == "Conv"}
    assert convolutions == {ELEMENT[precision]}


def test_casts_are_few(test_plan: Plan, engine: str, precision: str) -> None:
    """None of a cast's result, none twice, none that nothing reads, and none but where fp32 and half meet."""
    model = to_half(graph_of(test_plan, engine), engine, test_plan.manifest, precision)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    made = {node.output[0] for node in casts}
    assert not made & {node.input[0] for node in casts}, "a cast of a cast"
    assert len({(node.input[0], node.attribute[0].i) for node in casts}) == len(casts), "a cast twice"
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    assert made <= read, "a cast that nothing reads"


def test_every_matrix_of_a_half_product_is_stored_in_half(test_plan: Plan, precision: str) -> None:
    model = to_half(graph_of(test_plan, "step"), "step", test_plan.manifest, precision)
    islands = made_by(model, *ISLANDS)
    matrices = {tensor.name: tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices]
    for node in products:
        expected = TensorProto.FLOAT if node.output[0] in islands else ELEMENT[precision]
        assert matrices[node.input[1]] == expected, node.input[1]
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read, "weights in a type that nothing reads"


def test_the_fp32_graph_is_left_alone(test_plan: Plan, engine: str, precision: str) -> None:
    model = graph_of(test_plan, engine)
    before = model.SerializeToString()
    typed = to_half(model, engine, test_plan.manifest, precision)
    kept = typed.SerializeToString()
    emulate(typed)
    assert model.SerializeToString() == before and typed.SerializeToString() == kept


def test_error_of_an_engine(test_plan: Plan, engine: str, precision: str) -> None:
    model, inputs = graph_of(test_plan, engine), inputs_of(test_plan, engine)
    emulated = emulate(to_half(model, engine, test_plan.manifest, precision))
    onnx.checker.check_model(emulated, full_check=True)
    assert set(elements(emulated).values()).isdisjoint(ELEMENT.values()), "outputs and weights are fp32"
    got, expected = run(emulated, inputs), run(model, inputs)
    if engine == "decoder":
        assert np.abs(got["frames"].astype(int) - expected["frames"]).max() <= PIXEL_TOLERANCE
        del expected["frames"]
    for name, error in errors(got, expected).items():
        assert 0 < error <= TOLERANCE[precision], f"{name}: got {error:.1e}"


@pytest.mark.parametrize("first_position", [0, FAR])
def test_error_of_a_step(test_plan: Plan, absolute_plan: Plan, precision: str, first_position: int) -> None:
    plan = absolute_plan if first_position else test_plan
    emulated = emulate(to_half(graph_of(plan, "step"), "step", plan.manifest, precision))
    error = step_errors(plan, emulated, first_position)["change"]
    assert error <= STEP_TOLERANCE[precision], f"got {error:.1e}"


@pytest.mark.parametrize("island", WORSE)
def test_an_island_in_half_is_worse(test_plan: Plan, absolute_plan: Plan, precision: str, island: str) -> None:
    plan = absolute_plan if island == "angles" else test_plan
    model = emulate(to_half(graph_of(plan, "step"), "step", plan.manifest, precision))
    gates = made_by(model, "memory.decay+beta") | read_by(model, "Abs", "Relu")
    tensors = {
        "angles": read_by(model, "Cos", "Sin"),
        "gates": gates | {value.name for value in model.graph.output if value.name.endswith((".decay", ".beta"))},
        "residual": read_by(model, "LayerNormalization"),
        "sampler": {node.output[0] for node in model.graph.node if node.op_type == "Sub"} | {"latent_next"},
    }[island]
    first_position = FAR if island == "angles" else 0
    good = step_errors(plan, model, first_position)
    bad = step_errors(plan, round_tensors(model, dict.fromkeys(tensors, ELEMENT[precision])), first_position)
    seen = "present.0.decay" if island == "gates" else "change"
    assert bad[seen] >= WORSE[island] * good[seen], f"{seen}: got {bad[seen]:.1e}, and {good[seen]:.1e} with the island"


def test_fp16_runs_in_onnx_runtime(test_plan: Plan, engine: str) -> None:
    """As it is, which rounds less than the emulation: it must not be worse than that."""
    model, inputs = graph_of(test_plan, engine), inputs_of(test_plan, engine)
    typed = to_half(model, engine, test_plan.manifest, "fp16")
    got, expected = run(typed, inputs), run(model, inputs)
    names = {value.name: value.type.tensor_type.elem_type for value in typed.graph.output}
    assert {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in got.items()} == names
    for name, error in errors(got, expected).items():
        assert error <= TOLERANCE["fp16"], f"{name}: got {error:.1e}"


def small_manifest(half: bool = True, **precision: Any) -> Manifest:
    """Of the engine of `small_graph`; states are half if `half` says so, the decay not. `precision`: what stays."""
    tensor, halves = {"dtype": "float32", "shape": (2, 4)}, {"past": half, "key": half, "value": half, "decay": False}
    sources, targets = (("latent", "sample"), ("past", "state.past")), [(f"{n}_next", f"state.{n}") for n in halves]
    engine = EngineSpec(
        file="engine.onnx",
        inputs=tuple(Input(name=name, source=source, **tensor) for name, source in sources),
        outputs=tuple(Output(name=name, target=target, **tensor) for name, target in targets),
    )
    states = tuple(State(name=name, kind="carry", half=kept, **tensor) for name, kept in halves.items())
    return Manifest.model_construct(engines={"engine": engine}, states=states, lower_precision=Precision(**precision))


def small_graph(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> ModelProto:
    """latent [2, K] to a key that stands last, is read by a product and by what is fp32."""
    nodes = [
        helper.make_node("MatMul", ["latent", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["linear"]),
        helper.make_node("RMSNormalization", ["linear", "scale"], ["key_next"], axis=-1, epsilon=1e-6),
        helper.make_node("MatMul", ["key_next", "square"], ["value_next"]),
        helper.make_node("Softplus", ["key_next"], ["decay_next"]),
    ]
    width = weight.shape[1]
    named = {"weight": weight, "bias": bias, "scale": np.ones(width), "square": np.eye(width)}
    outputs = ("key_next", "value_next", "decay_next")
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, [2, len(weight)])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, width]) for name in outputs],
        [numpy_helper.from_array(np.asarray(values, np.float32), name) for name, values in named.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def test_against_numpy(precision: str) -> None:
    """The rounding written out: inputs and weights, the product, the norm's result; not the bias, not inside a norm."""
    rng = np.random.default_rng(1)
    weight, bias, latent = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 48), 48, (2, 64)))
    half = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}[precision]

    def rounded(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x.astype(half).astype(np.float32)

    linear = rounded(rounded(latent) @ rounded(weight)) + bias
    exact = linear / np.sqrt(np.square(linear).mean(-1, keepdims=True) + 1e-6)
    expected = {
        "key_next": rounded(exact),
        "value_next": rounded(exact),
        "decay_next": np.log1p(np.exp(exact)),
    }
    got = run(emulate(to_half(small_graph(weight, bias), "engine", small_manifest(), precision)), {"latent": latent})
    # But for ties, which the order of the sums decides, and whose result is one unit in the last place off.
    assert max(errors(got, expected).values()) <= 0.1 * TOLERANCE[precision]


def test_an_output_of_another_type_than_its_node(precision: str) -> None:
    """It is cast once, and who reads it reads either type."""
    model = to_half(
        small_graph(np.eye(4, dtype=np.float32), np.zeros(4, np.float32)), "engine", small_manifest(), precision
    )
    onnx.checker.check_model(model, full_check=True)
    key = next(node for node in model.graph.node if node.output[0] == "key_next")
    readers = {node.op_type: node.input[0] for node in model.graph.node if node.output[0] != "key_next"}
    assert (key.op_type, key.input[0]) == ("Cast", "key_next.fp32")
    assert readers["Softplus"] == "key_next.fp32" and readers["MatMul"] == "key_next"


def test_onnx_runtime_keeps_the_pairs(precision: str) -> None:
    """1.0001 lies between two numbers of either type: it comes out as 1, from inputs, nodes and weights alike."""
    pair = 1.0001 * np.eye(4, dtype=np.float32)
    model = small_graph(pair, np.zeros(4, np.float32))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("product", TensorProto.FLOAT, [2, 4]))
    latent = np.full((2, 4), 1.0001, np.float32)
    got = run(emulate(to_half(model, "engine", small_manifest(), precision)), {"latent": latent})
    assert np.array_equal(got["product"], np.ones((2, 4)))


def test_a_weight_that_fp16_cannot_hold() -> None:
    model = small_graph(1e5 * np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    with pytest.raises(HalfError, match=r"^weight: got a weight of 1e\+05, expected at most 65504 in fp16; export in"):
        to_half(model, "engine", small_manifest(), "fp16")
    to_half(model, "engine", small_manifest(), "bf16")
