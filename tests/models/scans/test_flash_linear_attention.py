"""fla's gated delta functions captured, against the sequential reference that comes with them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.models.scans.capture import captured_scans
from videossm.models.scans.errors import CaptureError

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # relative error in the Frobenius norm
BATCH, TOKENS, HEADS, D_K, D_V = 2, 37, 3, 16, 12
FUNCTIONS = ["chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"]

Inputs = dict[str, Tensor]


@pytest.fixture(scope="session")
def rule() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is no GPU
        pytest.importorskip("fla", reason="needs flash-linear-attention: make test installs it", exc_type=ImportError)
        return importlib.import_module("fla.ops.gated_delta_rule")


def inputs(kind: torch.dtype = torch.float32, heads: int = HEADS) -> Inputs:
    """With `heads` queries and keys, and HEADS values, unit keys, and a state."""
    noise = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    q, k = normal(BATCH, TOKENS, heads, D_K), F.normalize(normal(BATCH, TOKENS, heads, D_K), dim=-1)
    v, gates = normal(BATCH, TOKENS, HEADS, D_V), (BATCH, TOKENS, HEADS)
    activations = {name: x.to(kind) for name, x in {"q": q, "k": k, "v": v}.items()}
    state = normal(BATCH, HEADS, D_K, D_V)
    return activations | {"g": F.logsigmoid(normal(*gates)), "beta": normal(*gates).sigmoid(), "initial_state": state}


def expected_of(rule: ModuleType, arguments: Inputs, **options: Any) -> tuple[Tensor, Tensor]:
    return rule.naive_recurrent_gated_delta_rule(**arguments, **options, output_final_state=True)


def captured(rule: ModuleType, name: str, arguments: Inputs, **options: Any) -> tuple[Tensor, Tensor]:
    with captured_scans():
        return getattr(rule, name)(**arguments, **options, output_final_state=True)


def assert_close(actual: Any, expected: Any, kind: torch.dtype = torch.float32) -> None:
    kinds = (kind, torch.float32)
    for name, a, e, kind in zip(("output", "final state"), actual, expected, kinds, strict=True):
        assert a.shape == e.shape, f"{name}: got shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        error = float((a.double() - e.double()).norm() / e.double().norm())
        assert error <= TOLERANCE[kind], f"{name}: got relative error {error:.1e}, expected {TOLERANCE[kind]:.0e}"


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("state", [False, True], ids=["from zeros", "from a state"])
def test_matches_the_naive_one(rule: ModuleType, name: str, state: bool) -> None:
    arguments = inputs()
    if not state:
        del arguments["initial_state"]
    for options in ({}, {"scale": 0.7}):
        assert_close(captured(rule, name, arguments, **options), expected_of(rule, arguments, **options))
    with captured_scans():
        output, last = getattr(rule, name)(**arguments)
    assert last is None
    assert output.shape == (BATCH, TOKENS, HEADS, D_V)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(rule: ModuleType, name: str, kind: torch.dtype) -> None:
    arguments = inputs(kind)
    output, last = captured(rule, name, arguments)
    assert (output.dtype, last.dtype) == (kind, torch.float32)
    assert_close((output, last), expected_of(rule, arguments), kind)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_goes_on_from_a_state(rule: ModuleType, name: str) -> None:
    arguments, outputs = inputs(), []
    state = arguments.pop("initial_state")
    for cut in zip(*(x.split([1, 20, 16], 1) for x in arguments.values()), strict=True):
        now = dict(zip(arguments, cut, strict=True))
        output, state = captured(rule, name, now | {"initial_state": state})
        outputs.append(output)
    assert_close((torch.cat(outputs, 1), state), expected_of(rule, inputs()))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_the_kernels_fuse(rule: ModuleType, name: str) -> None:
    """Gates' activations and norms, each written out as the kernels' documentation says."""
    raw = inputs() | {"g": inputs()["g"] + 1, "beta": 3 * inputs()["beta"] - 1, "k": 2 * inputs()["k"]}
    A_log, dt_bias = torch.linspace(-1, 1, HEADS), torch.linspace(0, 1, HEADS)
    plain = raw | {
        "q": F.normalize(raw["q"], dim=-1),
        "k": F.normalize(raw["k"], dim=-1),
        "g": -A_log.exp() * F.softplus(raw["g"] + dt_bias),
        "beta": 2 * raw["beta"].sigmoid(),
    }
    options = {
        "use_qk_l2norm_in_kernel": True,
        "use_gate_in_kernel": True,
        "A_log": A_log,
        "dt_bias": dt_bias,
        "use_beta_sigmoid_in_kernel": True,
        "allow_neg_eigval": True,
    }
    assert_close(captured(rule, name, raw, **options), expected_of(rule, plain))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_norm_of_short_keys(rule: ModuleType, name: str) -> None:
    """fla's eps is under the root: a key of length 0.001 becomes one of 0.7."""
    raw = inputs()
    raw["k"] = raw["k"] / 1000
    plain = {x: raw[x] / (raw[x].square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in ("q", "k")}
    assert_close(captured(rule, name, raw, use_qk_l2norm_in_kernel=True), expected_of(rule, raw | plain))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_that_share_a_key(rule: ModuleType, name: str) -> None:
    arguments = inputs(heads=1)
    repeated = {x: arguments[x].expand(-1, -1, HEADS, -1) for x in ("q", "k")}
    assert_close(captured(rule, name, arguments), expected_of(rule, arguments | repeated))


def test_two_values_share_each_of_two_keys(rule: ModuleType) -> None:
    noise = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 5, heads, 8, generator=noise) / 3 for heads in (2, 2, 4))
    gate = torch.rand(1, 5, 4, generator=noise)
    arguments = {"q": q, "k": k, "v": v, "g": -gate, "beta": gate}
    repeated = {name: x[:, :, [0, 0, 1, 1]] for name, x in (("q", q), ("k", k))}
    assert_close(captured(rule, FUNCTIONS[0], arguments), expected_of(rule, arguments | repeated))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("option", ["state_v_first", "transpose_state_layout"])
def test_state_of_values_before_keys(rule: ModuleType, name: str, option: str) -> None:
    arguments = inputs()
    turned = arguments | {"initial_state": arguments["initial_state"].transpose(2, 3)}
    output, last = captured(rule, name, turned, **{option: True})
    assert_close((output, last.transpose(2, 3)), expected_of(rule, arguments))


def test_without_gates(rule: ModuleType) -> None:
    arguments = inputs()
    gate = arguments.pop("g")
    del arguments["beta"]
    arguments["k"] = arguments["k"] / 2
    plain = {"g": torch.zeros_like(gate), "beta": torch.ones_like(gate)}
    assert_close(captured(rule, FUNCTIONS[1], arguments), expected_of(rule, arguments | plain))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 30, 37])}, r"cu_seqlens: got \[3\], expected none, .*; call it once for each"),
        ({"gk": torch.ones(BATCH, TOKENS, HEADS, D_K)}, "gk: got .*; pass one gate a head, g"),
        ({"something": 3}, "something: got 3, expected none, .*; leave it out"),
        ({"beta": torch.ones(BATCH, TOKENS, HEADS, D_V)}, r"beta: got \[2, 37, 3, 12\], expected \[2, 37, 3\]; mend"),
        ({"v": torch.ones(BATCH, TOKENS, 4, D_V)}, r"q, k, v: got .* expected q like k and a multiple of their heads"),
        (
            {"initial_state": torch.ones(BATCH, HEADS, D_V, D_K)},
            r"initial_state, keys before values: got \[2, 3, 12, 16",
        ),
        ({"use_gate_in_kernel": True}, r"A_log: got None, expected \[Hv\] beside use_gate_in_kernel; pass it"),
    ],
    ids=["sequences", "gates of keys", "unknown", "beta", "heads", "state", "gate"],
)
def test_refuses(rule: ModuleType, change: dict[str, Any], message: str) -> None:
    for name in FUNCTIONS:
        with pytest.raises(CaptureError, match=message) as refused:
            captured(rule, name, inputs() | change)
        assert "\n" not in str(refused.value)


class Rule(nn.Module):
    def __init__(self, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.function = function  # as the layers of transformers keep it

    def forward(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(
            q,
            k,
            v,
            g=g,
            beta=beta,
            initial_state=state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("lowering", ["contrib", "standard"])
def test_as_onnx(rule: ModuleType, exported: Callable[..., Any], name: str, lowering: str) -> None:
    arguments = inputs()
    graph = exported(Rule(getattr(rule, name)), tuple(arguments.values()), lowering)
    assert graph.scans == {"GatedDeltaScan": 1}
    plain = {x: F.normalize(arguments[x], dim=-1) for x in ("q", "k")}
    assert_close(graph(*arguments.values()), expected_of(rule, arguments | plain))
