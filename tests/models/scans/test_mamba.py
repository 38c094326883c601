"""mamba-ssm captured: its functions against its own references, its layer whole, in chunks, both ways and as ONNX."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.models.scans.capture import captured_scans
from videossm.models.scans.errors import CaptureError
from videossm.models.scans.mamba import causal_conv1d_fn, mamba_chunk, mamba_states

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # relative error in the Frobenius norm
BATCH, CHANNELS, STATES, TOKENS, DIM = 2, 6, 4, 7, 12
RUNNABLE = ["contrib", "standard"]


@pytest.fixture(scope="session")
def simple() -> ModuleType:
    """The module of the layer, which has its functions by name."""
    with captured_scans():  # without CUDA kernels it can be imported nowhere else
        pytest.importorskip("mamba_ssm", reason="needs mamba-ssm: make test installs it", exc_type=ImportError)
        return importlib.import_module("mamba_ssm.modules.mamba_simple")


@pytest.fixture(scope="session")
def interface(simple: ModuleType) -> ModuleType:
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scan_inputs(groups: int = 0, channels: int = CHANNELS) -> dict[str, Tensor]:
    """groups 0: B and C have no dimension for them."""
    shape = (BATCH, groups, STATES, TOKENS) if groups else (BATCH, STATES, TOKENS)
    return {
        "u": normal(0, BATCH, channels, TOKENS),
        "delta": normal(1, BATCH, channels, TOKENS).abs(),
        "A": -normal(2, channels, STATES).exp(),
        "B": normal(3, *shape),
        "C": normal(4, *shape),
    }


def options() -> dict[str, Tensor]:
    return {"D": normal(5, CHANNELS), "z": normal(6, BATCH, CHANNELS, TOKENS), "delta_bias": normal(7, CHANNELS)}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def assert_close(actual: Any, expected: Any, kind: torch.dtype = torch.float32) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, f"{index}: got shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        error = relative_error(a, e)
        assert error <= TOLERANCE[kind], f"{index}: got relative error {error:.1e}, expected {TOLERANCE[kind]:.0e}"


def random_layer(simple: ModuleType, seed: int = 0, **config: Any) -> nn.Module:
    """No parameter at its start: zeros and ones hide mistakes."""
    layer: nn.Module = simple.Mamba(DIM, d_state=STATES, **config).eval().requires_grad_(False)
    for index, parameter in enumerate(layer.parameters()):
        parameter.add_(normal(100 * seed + index, *parameter.shape) / 3)
    return layer


class Chunk(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, conv_state: Tensor, scan_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return mamba_chunk(self.layer, hidden, conv_state, scan_state)


class Bidirectional(nn.Module):
    def __init__(self, forwards: nn.Module, backwards: nn.Module) -> None:
        super().__init__()
        self.forwards, self.backwards = forwards, backwards

    def forward(self, hidden: Tensor) -> Tensor:
        return self.forwards(hidden) + self.backwards(hidden.flip(1)).flip(1)


@pytest.mark.parametrize("groups", [0, 1, 2, 3], ids="groups-{}".format)
def test_selective_scan_with_all_options(interface: ModuleType, groups: int) -> None:
    for given in product((False, True), repeat=3):
        chosen = {name: x for (name, x), is_given in zip(options().items(), given, strict=True) if is_given}
        for softplus in (False, True):
            arguments = scan_inputs(groups) | chosen | {"delta_softplus": softplus}
            expected = interface.selective_scan_ref(**arguments, return_last_state=True)
            with captured_scans():
                assert_close(interface.selective_scan_fn(**arguments, return_last_state=True), expected)
                assert_close([interface.selective_scan_fn(**arguments)], expected[:1])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_selective_scan_in_half_precision(interface: ModuleType, kind: torch.dtype) -> None:
    """As an autocast layer calls it: activations in half precision, weights in fp32."""
    arguments = scan_inputs() | options()
    arguments |= {name: arguments[name].to(kind) for name in ("u", "delta", "B", "C", "z")}
    expected = interface.selective_scan_ref(**arguments, return_last_state=True)
    with captured_scans():
        y, last = interface.selective_scan_fn(**arguments, return_last_state=True)
    assert (y.dtype, last.dtype) == (kind, torch.float32)
    assert_close([y], expected[:1], kind)
    assert_close([last], expected[1:])


@pytest.mark.parametrize("groups", [0, 2], ids="groups-{}".format)
def test_selective_scan_goes_on_from_a_state(interface: ModuleType, groups: int) -> None:
    arguments = scan_inputs(groups) | options()
    whole, last = interface.selective_scan_ref(**arguments, return_last_state=True)
    state, parts = None, []
    with captured_scans():
        for cut in ([0], [1, 2, 3], [4, 5, 6]):
            now = {name: x[..., cut] if x.shape[-1] == TOKENS else x for name, x in arguments.items()}
            y, state = interface.selective_scan_fn(**now, return_last_state=True, initial_state=state)
            parts.append(y)
    assert_close((torch.cat(parts, 2), state), (whole, last))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": torch.ones(CHANNELS, STATES, dtype=torch.complex64)}, "A: got torch.complex64, expected real numbers"),
        ({"B": torch.ones(CHANNELS, STATES)}, r"B: got \[6, 4\], the same for all tokens, expected \[B, N, T\] or"),
        ({"C": torch.ones(CHANNELS, STATES)}, r"C: got \[6, 4\], the same for all tokens, expected \[B, N, T\] or"),
        ({"B": torch.ones(BATCH, 2, STATES, TOKENS)}, "B, C: got 2 and 1 groups for 6 channels, expected one number"),
        ({"initial_state": torch.ones(1, CHANNELS, STATES)}, r"initial_state: got \[1, 6, 4\], expected \[2, 6, 4\]"),
    ],
    ids=["complex", "constant B", "constant C", "groups", "state"],
)
def test_selective_scan_refuses(interface: ModuleType, change: dict[str, Tensor], message: str) -> None:
    with captured_scans(), pytest.raises(CaptureError, match=message) as refused:
        interface.selective_scan_fn(**scan_inputs() | change)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("config", [{}, {"bias": True, "conv_bias": False, "d_conv": 2}], ids=["usual", "other"])
def test_fast_path_is_the_slow_one(simple: ModuleType, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> None:
    """The layer takes it where causal-conv1d is installed."""
    layer, hidden = random_layer(simple, **config), normal(0, BATCH, TOKENS, DIM)
    with captured_scans():
        slow = layer(hidden)
        monkeypatch.setattr(simple, "causal_conv1d_fn", causal_conv1d_fn)
        fast = layer(hidden)
        layer.use_fast_path = False
        assert_close([fast, layer(hidden)], [slow, slow])


def test_inner_refuses_norms(interface: ModuleType) -> None:
    weights = [torch.ones(1)] * 7
    with captured_scans(), pytest.raises(CaptureError, match="b_rms_weight: got a weight, expected None; write the"):
        interface.mamba_inner_fn(*weights, None, b_rms_weight=torch.ones(STATES))


def test_causal_convolution() -> None:
    x, weight, bias = normal(0, BATCH, CHANNELS, TOKENS), normal(1, CHANNELS, 3), normal(2, CHANNELS)
    expected = F.silu(F.conv1d(x, weight[:, None], bias, padding=2, groups=CHANNELS)[..., :TOKENS])
    assert_close([causal_conv1d_fn(x, weight, bias, activation="silu")], [expected])
    state, parts, kept = None, [], torch.full((BATCH, CHANNELS, 2), torch.nan)
    for part in x.split([1, 4, 2], 2):
        y, state = causal_conv1d_fn(part, weight, bias, None, state, True, kept, "swish")
        parts.append(y)
    assert_close([torch.cat(parts, 2), kept], [expected, x[..., -2:]])
    with pytest.raises(CaptureError, match="seq_idx: got a tensor, expected None; call it once for each sequence"):
        causal_conv1d_fn(x, weight, seq_idx=torch.zeros(BATCH, TOKENS))
    with pytest.raises(CaptureError, match="activation: got 'relu', expected one of"):
        causal_conv1d_fn(x, weight, activation="relu")


@pytest.mark.parametrize(
    "config", [{}, {"bias": True, "conv_bias": False, "d_conv": 2, "dt_rank": 5, "expand": 3}], ids=["usual", "other"]
)
def test_chunks_are_the_layer(simple: ModuleType, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> None:
    """And what they leave is what the layer's own step, one token at a time, leaves in its cache."""
    layer, hidden = random_layer(simple, **config), normal(0, BATCH, 20, DIM)
    with captured_scans():
        whole = layer(hidden)
    states, parts = mamba_states(layer, BATCH), []
    for part in hidden.split([1, 1, 2, 9, 7], 1):
        out, *states = mamba_chunk(layer, part, *states)
        parts.append(out)
    assert_close([torch.cat(parts, 1)], [whole])

    monkeypatch.setattr(simple, "selective_state_update", None)  # a kernel for GPUs
    cache = layer.allocate_inference_cache(BATCH, 20)
    steps = [layer.step(token, *cache)[0] for token in hidden.split(1, 1)]
    assert_close([whole, states[0], states[1]], [torch.cat(steps, 1), cache[0][..., 1:], cache[1]])


def test_chunk_refuses(simple: ModuleType) -> None:
    layer, hidden = random_layer(simple), normal(0, BATCH, TOKENS, DIM)
    conv_state, scan_state = mamba_states(layer, BATCH)
    with pytest.raises(CaptureError, match=r"conv_state: got \[2, 24, 4\], expected \[2, 24, 3\]; start from mamba_st"):
        mamba_chunk(layer, hidden, F.pad(conv_state, (1, 0)), scan_state)
    with pytest.raises(CaptureError, match=r"scan_state: got \[1, 24, 4\], expected \[2, 24, 4\]; start from mamba_st"):
        mamba_chunk(layer, hidden, conv_state, scan_state[:1])
    with pytest.raises(CaptureError, match=r"layer: got Linear, expected a mamba_ssm.Mamba; pass one"):
        mamba_chunk(nn.Linear(2, 2), hidden, conv_state, scan_state)


@pytest.mark.parametrize("lowering", RUNNABLE)
def test_layer_as_onnx(simple: ModuleType, exported: Callable[..., Any], lowering: str) -> None:
    layer, hidden = random_layer(simple), normal(0, BATCH, TOKENS, DIM)
    graph = exported(layer, (hidden,), lowering)
    assert graph.scans == {"SelectiveScan": 1}
    with captured_scans():
        assert_close(graph(hidden), [layer(hidden)])


@pytest.mark.parametrize("lowering", RUNNABLE)
def test_both_ways_as_onnx(simple: ModuleType, exported: Callable[..., Any], lowering: str) -> None:
    model, hidden = Bidirectional(random_layer(simple, 1), random_layer(simple, 2)), normal(0, BATCH, TOKENS, DIM)
    graph = exported(model, (hidden,), lowering)
    assert graph.scans == {"SelectiveScan": 2}
    with captured_scans():
        got = model(hidden)
    directions = (model.forwards, hidden), (model.backwards, hidden.flip(1))
    forwards, backwards = (mamba_chunk(layer, x, *mamba_states(layer, BATCH))[0] for layer, x in directions)
    assert_close([got], [forwards + backwards.flip(1)])
    assert_close(graph(hidden), [got])


@pytest.mark.parametrize("lowering", RUNNABLE)
def test_a_hundred_chunks_as_onnx(simple: ModuleType, exported: Callable[..., Any], lowering: str) -> None:
    layer, hidden = random_layer(simple), normal(0, BATCH, 100 * TOKENS, DIM)
    states = mamba_states(layer, BATCH)
    graph = exported(Chunk(layer), (hidden[:, :TOKENS], *states), lowering)
    parts = []
    for part in hidden.split(TOKENS, 1):
        out, *states = graph(part, *states)
        parts.append(out)
    assert len(parts) == 100
    with captured_scans():
        whole = layer(hidden)
    assert_close([torch.cat(parts, 1)], [whole])
    assert_close([parts[-1]], [whole[:, -TOKENS:]])


def test_chunk_in_strict_mode(simple: ModuleType) -> None:
    layer = random_layer(simple)
    inputs = (normal(0, BATCH, TOKENS, DIM), *mamba_states(layer, BATCH))
    program = torch.export.export(Chunk(layer), inputs, strict=True)
    assert_close(program.module()(*inputs), mamba_chunk(layer, *inputs))
