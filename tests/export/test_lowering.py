"""Exported scans, lowered and run by ONNX Runtime, against the float64 references: outputs and final states."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto
from torch import Tensor
from torch.nn import functional as F

from videossm.export import schemas
from videossm.export.lowering import LOWERINGS, LoweringError, lower, standard
from videossm.models.scans.gated_delta import gated_delta_reference
from videossm.models.scans.operators import gated_delta_scan, selective_scan
from videossm.models.scans.selective_scan import selective_scan_reference
from videossm.runtime.backends.session import session_options

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}  # relative error in the Frobenius norm, by activation type
OPSET = 24
SCALE = 0.5
LENGTHS = [1, 7, 48, 193]
EXTREME = -69.0  # exp(-69) is 1e-30


@pytest.fixture(params=["contrib", "standard", "native"])
def name(request: pytest.FixtureRequest) -> str:
    """Of a lowering that ONNX Runtime runs here; test_lowering_plugin.py has the numbers of the other."""
    lowering: str = request.param
    if lowering == "native":
        request.getfixturevalue("native_scans")
    return lowering


class GatedDelta(torch.nn.Module):
    """Two scans, the second from the state that the first leaves, whose output nothing reads."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        _, state = gated_delta_scan(*inputs, SCALE)
        return gated_delta_scan(*inputs[:5], state, SCALE)


class SingleGatedDelta(torch.nn.Module):
    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return gated_delta_scan(*inputs, SCALE)


class Selective(torch.nn.Module):
    def forward(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        state, D, delta_bias = rest
        return selective_scan(u, delta, A, B, C, state, D, None, delta_bias, True)


def gated_inputs(
    tokens: int, kind: torch.dtype = torch.float32, d_k: int = 16, correlation: float = 0.0, extreme: bool = False
) -> list[Tensor]:
    """query, key, value, decay, beta, state; keys have the given cosine on average (as in the tests of the scans)."""
    noise = torch.Generator().manual_seed(tokens)
    batch, heads, d_v = 2, 3, 24

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    common, own = (F.normalize(normal(batch, n, heads, d_k), dim=-1) for n in (1, tokens))
    key = F.normalize(correlation**0.5 * common + (1 - correlation) ** 0.5 * own, dim=-1)
    query = F.normalize(normal(batch, tokens, heads, d_k), dim=-1)
    decay, beta = -F.softplus(normal(batch, tokens, heads)), normal(batch, tokens, heads).sigmoid()
    if extreme:
        strikes = torch.rand(decay.shape, generator=noise)
        decay = torch.where(strikes < 0.3, EXTREME, 0.01 * decay)
        beta = torch.where(strikes > 0.8, 1.0, beta)
    state, value = normal(batch, heads, d_k, d_v), normal(batch, tokens, heads, d_v)
    return [*(x.to(kind) for x in (query, key, value)), decay, beta, state]


def selective_inputs(tokens: int) -> list[Tensor]:
    """u, delta, A, B, C, state, D, delta_bias."""
    noise = torch.Generator().manual_seed(tokens)
    batch, channels, states = 2, 6, 4
    shapes = [(batch, channels, tokens)] * 2 + [(channels, states)] + [(batch, states, tokens)] * 2
    shapes += [(batch, channels, states), (channels,), (channels,)]
    tensors = [torch.randn(shape, generator=noise) for shape in shapes]
    tensors[2] = -tensors[2].abs()
    return tensors


def exported(module: torch.nn.Module, inputs: list[Tensor]) -> ModelProto:
    model = ModelProto()
    model.CopyFrom(export(type(module), *((tuple(x.shape), x.dtype) for x in inputs)))
    return model


@functools.cache
def export(module: type[torch.nn.Module], *inputs: tuple[tuple[int, ...], torch.dtype]) -> ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own use of torch
        program = torch.onnx.export(
            module().eval(),
            tuple(torch.zeros(shape, dtype=kind) for shape, kind in inputs),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            custom_translation_table=schemas.custom_translation_table(),
        )
    assert program is not None, "torch.onnx.export returned nothing"
    return program.model_proto


def outputs(model: ModelProto, inputs: list[Tensor]) -> list[Tensor]:
    """What ONNX Runtime computes, into buffers filled with NaN."""
    options = session_options("fp32", 1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for value, tensor in zip(session.get_inputs(), inputs, strict=True):
        binding.bind_cpu_input(value.name, tensor.numpy())
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    buffers = [np.full(value.shape, np.nan, kinds[value.type]) for value in session.get_outputs()]
    for value, buffer in zip(session.get_outputs(), buffers, strict=True):
        binding.bind_output(value.name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
    session.run_with_iobinding(binding)
    return [torch.from_numpy(buffer) for buffer in buffers]


def operators(model: ModelProto) -> set[tuple[str, str]]:
    return {(node.domain, node.op_type) for node in model.graph.node}


def assert_close(actual: list[Tensor], expected: tuple[Tensor, Tensor], kind: torch.dtype = torch.float32) -> None:
    for name, a, e, tolerance in zip(
        ("output", "final state"), actual, expected, (TOLERANCE[kind], TOLERANCE[torch.float32]), strict=True
    ):
        error = float((a.double() - e).norm() / e.norm())
        assert error <= tolerance, f"{name}: got relative error {error:.1e}, expected at most {tolerance:.0e}"


def expected_of_gated_delta(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    _, state = gated_delta_reference(*inputs, SCALE)
    return gated_delta_reference(*inputs[:5], state, SCALE)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_gated_delta(tokens: int, name: str) -> None:
    """On usual keys, on neighbouring keys of cosine 0.9, and with some tokens that forget everything."""
    model = exported(GatedDelta(), gated_inputs(tokens))
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == {(schemas.DOMAIN, schemas.GATED_DELTA_SCAN)}, "a scan is one node"
    model = lower(model, name)
    for correlation, extreme in ((0.0, False), (0.9, False), (0.9, True)):
        inputs = gated_inputs(tokens, correlation=correlation, extreme=extreme)
        assert_close(outputs(model, inputs), expected_of_gated_delta(inputs))


def test_split_invariance(name: str) -> None:
    """One graph of 48 tokens = one of 7 and one of 41, neither a multiple of the block, with the state carried."""
    inputs, parts = gated_inputs(48, correlation=0.9), (7, 41)

    def run(*inputs: Tensor) -> list[Tensor]:
        return outputs(lower(exported(SingleGatedDelta(), list(inputs)), name), list(inputs))

    whole, last = run(*inputs)
    state, pieces = inputs[5], []
    for cut in zip(*(x.split(parts, 1) for x in inputs[:5]), strict=True):
        output, state = run(*cut, state)
        pieces.append(output)
    assert_close([torch.cat(pieces, 1), state], (whole.double(), last.double()))


@pytest.mark.parametrize("tokens", [7, 48])
def test_gated_delta_with_fp16_activations(tokens: int, name: str) -> None:
    inputs = gated_inputs(tokens, torch.float16)
    model = lower(exported(GatedDelta(), inputs), name)
    assert_close(outputs(model, inputs), expected_of_gated_delta(inputs), torch.float16)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_selective_scan(tokens: int, name: str) -> None:
    inputs = selective_inputs(tokens)
    model = exported(Selective(), inputs)
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == {(schemas.DOMAIN, schemas.SELECTIVE_SCAN)}, "a scan is one node"
    *scanned, D, delta_bias = inputs
    expected = selective_scan_reference(*scanned, D, None, delta_bias, True)
    assert_close(outputs(lower(model, name), inputs), expected)


@pytest.mark.parametrize("opset", [23, 24])
def test_standard_has_standard_operators_only(opset: int) -> None:
    for module, inputs in ((GatedDelta(), gated_inputs(48)), (Selective(), selective_inputs(48))):
        model = exported(module, inputs)
        model.opset_import[[entry.domain for entry in model.opset_import].index("")].version = opset
        model = lower(model, "standard")
        assert {domain for domain, _ in operators(model)} <= {"", "ai.onnx"}, operators(model)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
        assert not model.functions, "local functions are not standard operators"
        onnx.checker.check_model(model, full_check=True)


def test_standard_keeps_to_8_dimensions() -> None:
    """TensorRT has no more. The width makes for the largest blocks, whose inverse takes the most levels."""
    model = lower(exported(GatedDelta(), gated_inputs(80, d_k=128)), "standard")
    ranks = [len(value.type.tensor_type.shape.dim) for value in model.graph.value_info]
    assert max(ranks) <= 8, f"rank: got {max(ranks)}"


def test_standard_refuses_unknown_opset() -> None:
    model = exported(GatedDelta(), gated_inputs(7))
    model.opset_import[[entry.domain for entry in model.opset_import].index("")].version = 99
    with pytest.raises(
        LoweringError, match=r"GatedDeltaScan node '.*': got a model in opset 99, expected .*; export in"
    ):
        lower(model, "standard")


def test_standard_refuses_inputs_that_do_not_fit() -> None:
    model = exported(GatedDelta(), gated_inputs(7))
    model.graph.input[1].type.tensor_type.shape.dim[2].dim_value = 5
    with pytest.raises(
        LoweringError, match=r"GatedDeltaScan node '.*': got inputs .* expected shapes as in its schema"
    ) as refused:
        lower(model, "standard")
    assert "\n" not in str(refused.value), refused.value


def test_contrib_is_one_operator_a_scan() -> None:
    model = lower(exported(GatedDelta(), gated_inputs(48)), "contrib")
    found = [node for node in model.graph.node if node.domain]
    assert [(node.domain, node.op_type) for node in found] == [("com.microsoft", "LinearAttention")] * 2
    assert {entry.domain for entry in model.opset_import} == {"", "com.microsoft"}


@pytest.mark.parametrize("name", sorted(LOWERINGS))
def test_names_are_unique(name: str) -> None:
    model = lower(exported(GatedDelta(), gated_inputs(48)), name)
    names = [output for node in model.graph.node for output in node.output]
    names += [value.name for value in model.graph.input] + [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names)), "two values share a name"
    nodes = [node.name for node in model.graph.node]
    assert len(nodes) == len(set(nodes)), "two nodes share a name"


@pytest.mark.parametrize("name", sorted(LOWERINGS))
def test_other_nodes_and_weights_are_kept(name: str) -> None:
    """Lowering leaves the rest of the graph alone, external weights, whose file need not exist, included."""
    model = exported(GatedDelta(), gated_inputs(7))
    weight = onnx.TensorProto(name="weight", data_type=onnx.TensorProto.FLOAT, dims=[4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="absent.data")
    model.graph.initializer.append(weight)
    model.graph.node.append(onnx.helper.make_node("Neg", ["weight"], ["negated"], name="kept"))
    lowered = lower(model, name)
    assert lowered is model, "the model was copied"
    assert weight in lowered.graph.initializer, "the weight is gone"
    assert lowered.graph.node[-1].name == "kept", "a node is gone"


def test_unread_final_state(name: str) -> None:
    class OutputOnly(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return gated_delta_scan(*inputs, SCALE)[0]

    inputs = gated_inputs(48)
    (output,) = outputs(lower(exported(OutputOnly(), inputs), name), inputs)
    expected, _ = gated_delta_reference(*inputs, SCALE)
    assert float((output - expected).norm() / expected.norm()) <= TOLERANCE[torch.float32], "the output is wrong"


@pytest.mark.parametrize("left_out", [False, True], ids=["unread", "left out"])
def test_unread_output(name: str, left_out: bool) -> None:
    class StateOnly(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return gated_delta_scan(*inputs, SCALE)[1]

    inputs = gated_inputs(48)
    model = exported(StateOnly(), inputs)
    if left_out:
        model.graph.node[0].output[0] = ""
    model = lower(model, name)
    if name == "standard":
        read = {source for node in model.graph.node for source in node.input}
        assert model.graph.input[0].name not in read, "the query is still read, for an output that nothing wants"
    (state,) = outputs(model, inputs)
    _, expected = gated_delta_reference(*inputs, SCALE)
    assert float((state - expected).norm() / expected.norm()) <= TOLERANCE[torch.float32], "the state is wrong"


@pytest.mark.parametrize("name", sorted(LOWERINGS))
def test_dead_scan_is_dropped(name: str) -> None:
    model = exported(GatedDelta(), gated_inputs(7))
    del model.graph.output[:]
    del model.graph.node[1:]
    assert not lower(model, name).graph.node, "a scan that nothing reads was lowered"


def test_unknown_lowering_is_refused() -> None:
    with pytest.raises(LoweringError) as refused:
        lower(ModelProto(), "plugins")
    assert (
        str(refused.value)
        == "lowering: got 'plugins', expected one of standard, contrib, native, plugin; choose one of those"
    )


def _without_shape(model: ModelProto) -> None:
    model.graph.input[2].type.tensor_type.ClearField("shape")


def _with_symbol(model: ModelProto) -> None:
    model.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "tokens"


@pytest.mark.parametrize(
    ("change", "reason"), [(_without_shape, "got no shape"), (_with_symbol, "got shape [2, 'tokens', 3, 24]")]
)
@pytest.mark.parametrize("name", sorted(LOWERINGS))
def test_shapes_must_be_static(name: str, change: Callable[[ModelProto], None], reason: str) -> None:
    model = exported(GatedDelta(), gated_inputs(7))
    change(model)
    with pytest.raises(LoweringError) as refused:
        lower(model, name)
    message = str(refused.value)
    assert message.startswith(f"GatedDeltaScan node {model.graph.node[0].name!r}: {reason}"), message
    assert "\n" not in message, message


@pytest.mark.parametrize(("key", "query"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_normalized_in_the_node(key: int, query: int, name: str) -> None:
    """As x / max(|x|, 1e-12) before it: a key of zeros included."""
    inputs = gated_inputs(48)
    inputs[0], inputs[1] = 3 * inputs[0], 2 * inputs[1]
    inputs[1][:, 5] = 0
    model = exported(SingleGatedDelta(), inputs)
    (node,) = model.graph.node
    flags = {"normalize_key": key, "normalize_query": query}
    for entry in node.attribute:
        if entry.name in flags:
            entry.i = flags[entry.name]
    onnx.checker.check_model(model, full_check=True)
    normalized = list(inputs)
    for place, wanted in ((0, query), (1, key)):
        if wanted:
            normalized[place] = F.normalize(inputs[place].double(), dim=-1)
    assert_close(outputs(lower(model, name), inputs), gated_delta_reference(*normalized, SCALE))


def _without_scale(node: NodeProto) -> None:
    (scale,) = (entry for entry in node.attribute if entry.name == "scale")
    node.attribute.remove(scale)


def _with_another(node: NodeProto) -> None:
    node.attribute.append(onnx.helper.make_attribute("decay_type", 1))


def _lowered_to_plugin(node: NodeProto) -> None:
    node.attribute.append(onnx.helper.make_attribute("plugin_version", "1"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_scale, "got no attribute scale, expected one; add it"),
        (_with_another, "got attribute decay_type, expected normalize_key, normalize_query, scale; remove it"),
        (_lowered_to_plugin, "got plugin_version, which is for TensorRT alone, expected a node that is not lowered"),
    ],
)
@pytest.mark.parametrize("name", sorted(LOWERINGS))
def test_attributes_are_those_of_the_schema(name: str, change: Callable[[NodeProto], None], reason: str) -> None:
    model = exported(GatedDelta(), gated_inputs(7))
    change(model.graph.node[0])
    with pytest.raises(LoweringError) as refused:
        lower(model, name)
    assert str(refused.value).startswith(f"GatedDeltaScan node {model.graph.node[0].name!r}: {reason}"), refused.value


def test_contrib_refuses_scale_0() -> None:
    model = exported(GatedDelta(), gated_inputs(7))
    (scale,) = (entry for entry in model.graph.node[0].attribute if entry.name == "scale")
    scale.f = 0
    with pytest.raises(LoweringError, match=r"got scale 0, expected another; use the standard lowering"):
        lower(model, "contrib")


def test_schemas_register_twice() -> None:
    schemas.register()
    for schema in schemas.SCHEMAS:
        assert onnx.defs.get_schema(schema.name, schemas.VERSION, schemas.DOMAIN).name == schema.name


def test_shape_inference() -> None:
    model = exported(GatedDelta(), gated_inputs(7))
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inferred.graph.output]
    assert shapes == [[2, 7, 3, 24], [2, 3, 16, 24]], shapes


def test_spans_of_a_long_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three spans, the last one shorter: less memory, the same numbers."""
    inputs = gated_inputs(161)
    monkeypatch.setattr(standard, "SPAN_BYTES", inputs[2].numel() * 4 // 3 + 1)
    model = lower(exported(SingleGatedDelta(), inputs), "standard")
    assert_close(outputs(model, inputs), gated_delta_reference(*inputs, SCALE))
