"""Scans against their sequential float64 references: outputs and final states."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from videossm.models.scans import operators
from videossm.models.scans.gated_delta import gated_delta_chunked, gated_delta_reference, unit_lower_inverse
from videossm.models.scans.selective_scan import linear_recurrence, selective_scan_parallel, selective_scan_reference

# Relative error in the Frobenius norm against float64, by the type of the activations.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LENGTHS = [1, 7, 48, 193]
EXTREME = -69.0  # exp(-69) is 1e-30

Inputs = list[Tensor]


def gated_inputs(
    tokens: int,
    correlation: float = 0.0,
    extreme: bool = False,
    batch: int = 2,
    heads: int = 3,
    d_k: int = 32,
    d_v: int = 24,
) -> Inputs:
    """query, key, value, decay, beta, state; neighbouring keys have the given cosine on average."""
    noise = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    common, own = (F.normalize(normal(batch, n, heads, d_k), dim=-1) for n in (1, tokens))
    key = F.normalize(correlation**0.5 * common + (1 - correlation) ** 0.5 * own, dim=-1)
    query = F.normalize(normal(batch, tokens, heads, d_k), dim=-1)
    decay = -F.softplus(normal(batch, tokens, heads) - 2)
    beta = normal(batch, tokens, heads).sigmoid()
    if extreme:
        strikes = torch.rand(decay.shape, generator=noise)
        decay = torch.where(strikes < 0.3, EXTREME, 0.01 * decay)
        beta = torch.where(strikes > 0.8, 1.0, beta)
    return [query, key, normal(batch, tokens, heads, d_v), decay, beta, normal(batch, heads, d_k, d_v)]


def selective_inputs(tokens: int, extreme: bool = False, batch: int = 2, channels: int = 6, states: int = 16) -> Inputs:
    """u, delta, A, B, C, state, D, z, delta_bias."""
    noise = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    delta = normal(batch, channels, tokens)
    if extreme:
        delta = torch.where(torch.rand(delta.shape, generator=noise) < 0.3, -EXTREME, delta)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1) / 4
    B, C = normal(batch, states, tokens), normal(batch, states, tokens)
    u, z = normal(batch, channels, tokens), normal(batch, channels, tokens)
    return [u, delta, A, B, C, normal(batch, channels, states), normal(channels), z, normal(channels)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def assert_close(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    for name, a, e in zip(("output", "final state"), actual, expected, strict=True):
        assert a.shape == e.shape, f"{name}: got shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        error = relative_error(a, e)
        assert error <= tolerance, f"{name}: got relative error {error:.1e}, expected at most {tolerance:.0e}"


def finite_gradients(scan: Callable[..., tuple[Tensor, Tensor]], inputs: Inputs, *options: object) -> bool:
    leaves = [x.clone().requires_grad_() for x in inputs]
    output, state = scan(*leaves, *options)
    (output.square().sum() + state.square().sum()).backward()
    return all(x.grad is not None and bool(x.grad.isfinite().all()) for x in leaves)


@pytest.mark.parametrize("block_size", [None, 64])
@pytest.mark.parametrize(("correlation", "extreme"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_gated_delta_matches_reference(tokens: int, correlation: float, extreme: bool, block_size: int | None) -> None:
    inputs = gated_inputs(tokens, correlation, extreme)
    expected = gated_delta_reference(*inputs, scale=0.3)
    assert_close(gated_delta_chunked(*inputs, scale=0.3, block_size=block_size), expected, TOLERANCE[torch.float32])
    assert finite_gradients(gated_delta_chunked, inputs, 0.3, block_size)


def test_gated_delta_forgets_everything() -> None:
    inputs = gated_inputs(70)
    inputs[3] = torch.full_like(inputs[3], EXTREME)
    assert_close(gated_delta_chunked(*inputs, 1.0), gated_delta_reference(*inputs, 1.0), TOLERANCE[torch.float32])
    assert finite_gradients(gated_delta_chunked, inputs, 1.0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_gated_delta_computes_in_fp32(kind: torch.dtype) -> None:
    inputs = gated_inputs(193, correlation=0.9)
    inputs[:3] = [x.to(kind) for x in inputs[:3]]
    expected = gated_delta_reference(*inputs, scale=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = gated_delta_chunked(*inputs, scale=1.0)
    assert output.dtype == kind, f"output: got {output.dtype}, expected {kind}"
    assert relative_error(output, expected[0]) <= TOLERANCE[kind], "output is wrong"
    assert relative_error(state, expected[1]) <= TOLERANCE[torch.float32], "state lost precision to autocast"


def test_gated_delta_matches_transformers() -> None:
    qwen = pytest.importorskip(
        "transformers.models.qwen3_next.modeling_qwen3_next", reason="transformers, an independent implementation"
    )
    query, key, value, decay, beta, state = inputs = gated_inputs(48)
    recurrent = inspect.unwrap(
        qwen.torch_recurrent_gated_delta_rule
    )  # what wraps it calls fla's kernel if there is one
    expected = recurrent(query, key, value, decay, beta, initial_state=state, output_final_state=True)
    scale = query.shape[-1] ** -0.5
    for scan in (gated_delta_reference, gated_delta_chunked):
        assert_close(scan(*inputs, scale), expected, TOLERANCE[torch.float32])


def test_gated_delta_gradient() -> None:
    inputs = [x.double().requires_grad_() for x in gated_inputs(11, 0.5, batch=1, heads=2, d_k=4, d_v=3)]
    assert torch.autograd.gradcheck(lambda *x: gated_delta_chunked(*x, scale=0.5, block_size=4), inputs)


@pytest.mark.parametrize("block_size", [0, 48])
def test_gated_delta_refuses_block_size(block_size: int) -> None:
    with pytest.raises(ValueError, match=f"block_size: got {block_size}, expected a power of two"):
        gated_delta_chunked(*gated_inputs(7), scale=1.0, block_size=block_size)


def test_unit_lower_inverse() -> None:
    strict = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril(-1) / 8
    product = unit_lower_inverse(strict) @ (torch.eye(64) + strict)
    torch.testing.assert_close(product, torch.eye(64, dtype=torch.float64).expand(2, 64, 64))


@pytest.mark.parametrize("extreme", [False, True], ids=["usual", "extreme"])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_selective_scan_matches_reference(tokens: int, extreme: bool) -> None:
    inputs = selective_inputs(tokens, extreme)
    expected = selective_scan_reference(*inputs, delta_softplus=True)
    assert_close(selective_scan_parallel(*inputs, delta_softplus=True), expected, TOLERANCE[torch.float32])
    assert finite_gradients(selective_scan_parallel, inputs, True)


def test_selective_scan_without_options() -> None:
    u, delta, *rest = selective_inputs(48)[:6]
    inputs = [u, F.softplus(delta), *rest]
    assert_close(selective_scan_parallel(*inputs), selective_scan_reference(*inputs), TOLERANCE[torch.float32])


def test_selective_scan_by_hand() -> None:
    """One channel, one state, two tokens: x = a x + dt B u, y = (C x + D u) silu(z)."""
    one = torch.ones(1, 1, 2)
    arguments = (2 * one, one, -torch.ones(1, 1), one, 3 * one, torch.full((1, 1, 1), 5.0), torch.ones(1), one)
    first = torch.tensor(-1.0).exp() * 5 + 2
    second = torch.tensor(-1.0).exp() * first + 2
    expected = (3 * torch.stack([first, second]) + 2) * F.silu(torch.tensor(1.0))
    for scan in (selective_scan_reference, selective_scan_parallel):
        y, state = scan(*arguments)
        torch.testing.assert_close(y.float().flatten(), expected)
        torch.testing.assert_close(state.float().flatten(), second[None])


def test_linear_recurrence_gradient() -> None:
    noise = torch.Generator().manual_seed(0)
    decay, write = torch.rand(2, 2, 5, 3, generator=noise, dtype=torch.float64).requires_grad_().unbind(0)
    state = torch.rand(2, 3, generator=noise, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_recurrence, (decay, write, state))


# (7, 41): neither part is a multiple of the block, so both are filled up; the whole is.
@pytest.mark.parametrize("parts", [(48, 48), (96, 96), (7, 41)], ids=str)
def test_split_invariance(parts: tuple[int, int]) -> None:
    """One call over all tokens = two calls over a part each with the state carried."""
    inputs = gated_inputs(sum(parts), correlation=0.9)
    whole, last = gated_delta_chunked(*inputs, scale=1.0)
    state, outputs = inputs[5], []
    for cut in zip(*(x.split(parts, 1) for x in inputs[:5]), strict=True):
        output, state = gated_delta_chunked(*cut, state, scale=1.0)
        outputs.append(output)
    assert_close((torch.cat(outputs, 1), state), (whole.double(), last.double()), TOLERANCE[torch.float32])

    u, delta, A, B, C, state, D, z, bias = selective_inputs(sum(parts))
    whole, last = selective_scan_parallel(u, delta, A, B, C, state, D, z, bias, True)
    outputs = []
    for cut in zip(*(x.split(parts, 2) for x in (u, delta, B, C, z)), strict=True):
        y, state = selective_scan_parallel(cut[0], cut[1], A, cut[2], cut[3], state, D, cut[4], bias, True)
        outputs.append(y)
    assert_close((torch.cat(outputs, 2), state), (whole.double(), last.double()), TOLERANCE[torch.float32])


def test_operators_agree_with_their_fakes() -> None:
    """opcheck compares shapes, types and strides of a call with what the operator declares to torch.export."""
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.gated_delta_scan, (*gated_inputs(7), 1.0), test_utils=checks)
    torch.library.opcheck(operators.selective_scan, tuple(selective_inputs(7)), test_utils=checks)
