"""The scans on the CPU against their sequential float64 references: outputs and final states."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from videossm.models.scans.gated_delta import gated_delta_reference
from videossm.models.scans.selective_scan import selective_scan_reference
from videossm.plugins_trt import ScanLibrary

Array = NDArray[Any]
Arrays = dict[str, Any]

TOLERANCE = 1e-5  # relative error in the Frobenius norm against float64
MANTISSA = {"float16": 10, "bfloat16": 7}  # bits
SMALLEST = {"float16": 2.0**-14, "bfloat16": 2.0**-126}  # normal numbers
HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
EXTREME = -69.0  # exp(-69) is 1e-30
SETS = ("generic", "avx2", "avx512")


@pytest.fixture(params=SETS)
def every_set(request: pytest.FixtureRequest, cpu_library: ScanLibrary, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that this machine has, in turn."""
    monkeypatch.setenv("VIDEOSSM_CPU", request.param)
    try:
        scan_gated(cpu_library, gated_inputs(1, d_k=4, d_v=4))
    except ValueError as error:
        assert "VIDEOSSM_CPU" in str(error)
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


@pytest.fixture(scope="module", autouse=True)
def reference_on_one_thread() -> Iterator[None]:
    """A token at a time gains nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def gated_inputs(
    tokens: int,
    correlation: float = 0.0,
    extreme: bool = False,
    batch: int = 2,
    heads: int = 3,
    d_k: int = 32,
    d_v: int = 24,
    normalized: bool = True,
) -> Arrays:
    """Neighbouring keys have the given cosine on average; `extreme`: decays from 1e-30 to 1."""
    noise = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise)

    common, own = (F.normalize(normal(batch, n, heads, d_k), dim=-1) for n in (1, tokens))
    key = correlation**0.5 * common + (1 - correlation) ** 0.5 * own
    query = normal(batch, tokens, heads, d_k)
    if normalized:
        key, query = F.normalize(key, dim=-1), F.normalize(query, dim=-1)
    decay = -F.softplus(normal(batch, tokens, heads) - 2)
    beta = normal(batch, tokens, heads).sigmoid()
    if extreme:
        strikes = torch.rand(decay.shape, generator=noise)
        decay = torch.where(strikes < 0.3, EXTREME * torch.rand(decay.shape, generator=noise), 0.01 * decay)
        decay = torch.where(strikes < 0.1, EXTREME, torch.where(strikes > 0.9, 0.0, decay))
        beta = torch.where(strikes > 0.8, 1.0, beta)
    tensors = {"query": query, "key": key, "value": normal(batch, tokens, heads, d_v), "decay": decay, "beta": beta}
    tensors["state"] = normal(batch, heads, d_k, d_v)
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


@cache
def selective_inputs(
    tokens: int, extreme: bool = False, batch: int = 2, channels: int = 21, states: int = 16
) -> Arrays:
    noise = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise)

    delta = normal(batch, channels, tokens)
    if extreme:
        delta = torch.where(torch.rand(delta.shape, generator=noise) < 0.3, -EXTREME, delta)
        delta = torch.where(torch.rand(delta.shape, generator=noise) < 0.2, EXTREME, delta)
    tensors = {
        "u": normal(batch, channels, tokens),
        "delta": delta,
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1) / 4,
        "B": normal(batch, states, tokens),
        "C": normal(batch, states, tokens),
        "state": normal(batch, channels, states),
        "D": normal(channels),
        "z": normal(batch, channels, tokens),
        "delta_bias": normal(channels),
    }
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def poisoned(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    return np.full(shape, np.nan, dtype)


def scan_gated(library: ScanLibrary, inputs: Arrays, scale: float = 0.3, **options: Any) -> tuple[Array, Array]:
    """Into poisoned outputs, with a poisoned workspace."""
    output, last = poisoned(inputs["value"].shape, inputs["value"].dtype), poisoned(inputs["state"].shape)
    workspace = np.full(1 << 21, 0xFF, np.uint8)
    library.gated_delta_scan(**inputs, scale=scale, output=output, last_state=last, workspace=workspace, **options)
    return output, last


def scan_selective(library: ScanLibrary, inputs: Arrays, delta_softplus: bool = True) -> tuple[Array, Array]:
    y, last = poisoned(inputs["u"].shape, inputs["u"].dtype), poisoned(inputs["state"].shape)
    workspace = np.full(1 << 21, 0xFF, np.uint8)
    library.selective_scan(**inputs, delta_softplus=delta_softplus, y=y, last_state=last, workspace=workspace)
    return y, last


def tensors_of(inputs: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.astype(np.float64)) for name, array in inputs.items()}


def gated_expected(inputs: Arrays, scale: float = 0.3, normalize: bool = False) -> tuple[Array, Array]:
    tensors = tensors_of(inputs)
    if normalize:
        tensors |= {name: F.normalize(tensors[name], dim=-1) for name in ("key", "query")}
    output, state = gated_delta_reference(**tensors, scale=scale)
    return output.numpy(), state.numpy()


def selective_expected(inputs: Arrays, delta_softplus: bool = True) -> tuple[Array, Array]:
    y, state = selective_scan_reference(**tensors_of(inputs), delta_softplus=delta_softplus)
    return y.numpy(), state.numpy()


@cache
def gated_case_expected(*case: Any) -> tuple[Array, Array]:
    return gated_expected(gated_inputs(*case))


@cache
def selective_case_expected(*case: Any) -> tuple[Array, Array]:
    return selective_expected(selective_inputs(*case))


def assert_close(actual: tuple[Array, Array], expected: tuple[Array, Array], tolerance: float = TOLERANCE) -> None:
    for name, a, e in zip(("output", "final state"), actual, expected, strict=True):
        error = np.linalg.norm(a.astype(np.float64) - e) / np.linalg.norm(e)
        assert error <= tolerance, f"{name}: got relative error {error:.1e}, expected at most {tolerance:.0e}"


def assert_rounded(actual: Array, expected: Array) -> None:
    """Half a unit in the last place of the type, and what fp32 may differ by."""
    magnitude = np.maximum(np.abs(expected), SMALLEST[actual.dtype.name])
    unit = 2.0 ** (np.floor(np.log2(magnitude)) - MANTISSA[actual.dtype.name])
    allowed = 0.5 * unit + TOLERANCE * np.sqrt(np.mean(expected**2))
    worst = np.max(np.abs(actual.astype(np.float64) - expected) / allowed)
    assert worst <= 1, f"output: got {worst:.2f} of the error that rounding has, expected at most 1"


def parts_of(inputs: Arrays, axes: dict[str, int], parts: tuple[int, int]) -> list[Arrays]:
    """The inputs of two calls, split along the axis of tokens where `axes` gives one."""
    cuts = {name: np.split(inputs[name], parts[:1], axis) for name, axis in axes.items()}
    return [inputs | {name: np.ascontiguousarray(cut[i]) for name, cut in cuts.items()} for i in range(2)]


@pytest.mark.parametrize(("correlation", "extreme"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("tokens", [1, 7, 63, 65, 192])
@pytest.mark.parametrize("dims", [(16, 16), (32, 24), (64, 128), (128, 64), (5, 3)], ids=str)
@pytest.mark.usefixtures("every_set")
def test_gated_delta_matches_reference(
    cpu_library: ScanLibrary, dims: tuple[int, int], tokens: int, correlation: float, extreme: bool
) -> None:
    case = (tokens, correlation, extreme, 2, 3, *dims)
    assert_close(scan_gated(cpu_library, gated_inputs(*case)), gated_case_expected(*case))


def test_gated_delta_of_a_frame_of_the_paper(cpu_library: ScanLibrary) -> None:
    inputs = gated_inputs(1560, 0.9, batch=1, heads=2, d_k=128, d_v=128)
    assert_close(scan_gated(cpu_library, inputs), gated_expected(inputs))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.usefixtures("every_set")
def test_gated_delta_rounds_only_its_output(cpu_library: ScanLibrary, dtype: str) -> None:
    inputs = gated_inputs(65, 0.9, d_k=32, d_v=40)
    inputs = inputs | {name: inputs[name].astype(HALVES[dtype]) for name in ("query", "key", "value")}
    output, state = scan_gated(cpu_library, inputs)
    expected = gated_expected(inputs)
    assert_rounded(output, expected[0])
    assert_close((state, state), (expected[1], expected[1]))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.usefixtures("every_set")
def test_halves_are_converted_exactly(cpu_library: ScanLibrary, dtype: str) -> None:
    """All finite numbers of a type, subnormal ones too: a first token writes value * key, the query reads it back."""
    every = np.arange(1 << 16, dtype=np.uint16).view(HALVES[dtype])
    value = every[np.isfinite(every.astype(np.float32))].reshape(1, 1, -1, 16)
    value = value[np.abs(value.astype(np.float64)).max(-1) < 1e37][None, None] if dtype == "bfloat16" else value
    heads = value.shape[2]
    one = np.ones((1, 1, heads, 1), value.dtype)
    gate = np.ones((1, 1, heads), np.float32)
    inputs = {"query": one, "key": one, "value": value, "decay": 0 * gate, "beta": gate}
    output, _ = scan_gated(cpu_library, inputs | {"state": np.zeros((1, heads, 1, 16), np.float32)}, scale=1.0)
    exact = value.astype(np.float32)
    exact = np.where(np.abs(exact) < 2.0**-126, 0, exact)  # subnormal as fp32
    np.testing.assert_array_equal(output.astype(np.float32), exact)


def test_without_query_the_state_is_the_same(cpu_library: ScanLibrary) -> None:
    inputs = gated_inputs(65)
    _, expected = scan_gated(cpu_library, inputs)
    output, state = cpu_library.gated_delta_scan(**inputs | {"query": None}, scale=1.0)
    assert output is None
    np.testing.assert_array_equal(state, expected)


@pytest.mark.usefixtures("every_set")
def test_keys_and_queries_are_normalized(cpu_library: ScanLibrary) -> None:
    inputs = gated_inputs(65, normalized=False, d_k=20)
    inputs = inputs | {name: inputs[name].copy() for name in ("key", "query")}
    inputs["key"][0, 3], inputs["key"][0, 4], inputs["query"][:, 5] = 0, 1e-14, 0
    actual = scan_gated(cpu_library, inputs, normalize_key=True, normalize_query=True)
    assert_close(actual, gated_expected(inputs, normalize=True))
    assert not actual[0][:, 5].any(), "output: got some for a query of zeros, expected zeros"
    one_of_both = scan_gated(cpu_library, inputs, normalize_query=True)
    assert not np.allclose(one_of_both[1], actual[1])


def test_all_is_forgotten(cpu_library: ScanLibrary) -> None:
    for decay in (EXTREME, -1e4, -np.inf):
        inputs = gated_inputs(70) | {"decay": np.full((2, 70, 3), decay, np.float32)}
        assert_close(scan_gated(cpu_library, inputs), gated_expected(inputs))


def test_later_tokens_change_nothing(cpu_library: ScanLibrary) -> None:
    inputs = gated_inputs(40)
    expected, _ = scan_gated(cpu_library, inputs)
    broken = {name: inputs[name].copy() for name in ("query", "key", "value", "decay", "beta")}
    for array in broken.values():
        array[:, 35:] = np.nan
    output, state = scan_gated(cpu_library, inputs | broken)
    np.testing.assert_array_equal(output[:, :35], expected[:, :35])
    assert np.isnan(output[:, 35:]).all()
    assert np.isnan(state).all()


# (7, 41): neither part is a multiple of the block; the whole is not, either.
@pytest.mark.parametrize("parts", [(96, 96), (32, 32), (7, 41), (1, 64)], ids=str)
def test_split_invariance(cpu_library: ScanLibrary, parts: tuple[int, int]) -> None:
    """One call over all tokens = two calls over a part each with the state carried."""
    gated = gated_inputs(sum(parts), 0.9)
    outputs, state = [], gated["state"]
    for part in parts_of(gated, dict.fromkeys(("query", "key", "value", "decay", "beta"), 1), parts):
        output, state = scan_gated(cpu_library, part | {"state": state})
        outputs.append(output)
    assert_close((np.concatenate(outputs, 1), state), scan_gated(cpu_library, gated))

    selective = selective_inputs(sum(parts))
    outputs, state = [], selective["state"]
    for part in parts_of(selective, dict.fromkeys(("u", "delta", "B", "C", "z"), 2), parts):
        y, state = scan_selective(cpu_library, part | {"state": state})
        outputs.append(y)
    assert_close((np.concatenate(outputs, 2), state), scan_selective(cpu_library, selective))


@pytest.mark.parametrize("extreme", [False, True], ids=["usual", "extreme"])
@pytest.mark.parametrize("states", [1, 8, 13, 16, 64])
@pytest.mark.parametrize("tokens", [1, 7, 65, 193])
@pytest.mark.usefixtures("every_set")
def test_selective_scan_matches_reference(cpu_library: ScanLibrary, tokens: int, states: int, extreme: bool) -> None:
    case = (tokens, extreme, 2, 21, states)
    assert_close(scan_selective(cpu_library, selective_inputs(*case)), selective_case_expected(*case))


@pytest.mark.parametrize(("softplus", "D", "z", "bias"), [*product((False, True), repeat=4)])
def test_selective_scan_options(cpu_library: ScanLibrary, softplus: bool, D: bool, z: bool, bias: bool) -> None:
    inputs = selective_inputs(30)
    inputs = inputs | {"delta": np.abs(inputs["delta"]), "delta_bias": np.abs(inputs["delta_bias"])}
    for name, given in (("D", D), ("z", z), ("delta_bias", bias)):
        if not given:
            del (inputs := dict(inputs))[name]
    assert_close(scan_selective(cpu_library, inputs, softplus), selective_expected(inputs, softplus))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.usefixtures("every_set")
def test_selective_scan_rounds_only_y(cpu_library: ScanLibrary, dtype: str) -> None:
    inputs = selective_inputs(65)
    inputs = inputs | {name: inputs[name].astype(HALVES[dtype]) for name in ("u", "delta", "B", "C", "z")}
    y, state = scan_selective(cpu_library, inputs)
    expected = selective_expected(inputs)
    assert_rounded(y, expected[0])
    assert_close((state, state), (expected[1], expected[1]))


def test_without_c_the_state_is_the_same(cpu_library: ScanLibrary) -> None:
    inputs = selective_inputs(65)
    _, expected = scan_selective(cpu_library, inputs)
    y, state = cpu_library.selective_scan(**inputs | {"C": None}, delta_softplus=True)
    assert y is None
    np.testing.assert_array_equal(state, expected)


def test_s4d(cpu_library: ScanLibrary) -> None:
    """Constant A, B, C and step size: y is u convolved with sum_n C_n e^(dt A_n t) dt B_n."""
    channels, states, tokens, step = 5, 8, 200, 0.1
    noise = np.random.default_rng(0)
    u = noise.standard_normal((1, channels, tokens))
    A = -np.tile(np.arange(1.0, states + 1), (channels, 1)) / 2
    B, C = noise.standard_normal((2, states))
    time = np.arange(tokens)
    kernel = np.einsum("n,dnt,n->dt", C, np.exp(step * A[..., None] * time), step * B)
    expected = np.stack([np.convolve(u[0, d], kernel[d])[:tokens] for d in range(channels)])[None]
    constant = {"B": np.tile(B[None, :, None], tokens), "C": np.tile(C[None, :, None], tokens)}
    inputs = {"u": u, "delta": np.full_like(u, step), "A": A, **constant, "state": np.zeros((1, channels, states))}
    y, _ = scan_selective(cpu_library, {name: x.astype(np.float32) for name, x in inputs.items()}, False)
    assert_close((y, y), (expected, expected))


def test_a_long_selective_scan_in_two_parts(cpu_library: ScanLibrary) -> None:
    inputs = selective_inputs(16384, batch=1, channels=4, states=8)
    axes = dict.fromkeys(("u", "delta", "B", "C", "z"), 2)
    first, second = parts_of(inputs, axes, (8191, 8193))
    y, state = scan_selective(cpu_library, first)
    rest, state = scan_selective(cpu_library, second | {"state": state})
    assert_close((np.concatenate([y, rest], 2), state), scan_selective(cpu_library, inputs))
    assert_close((state, state), selective_expected(inputs)[1:] * 2)


@pytest.mark.usefixtures("every_set")
def test_exp_softplus_and_silu(cpu_library: ScanLibrary) -> None:
    """Element by element, through scans of one token and one channel an element."""
    x = np.concatenate([np.linspace(-80, 80, 40001), np.linspace(-1e-3, 1e-3, 1001)]).astype(np.float32)
    column, one = x[None, :, None], np.ones((1, len(x), 1), np.float32)
    single = np.ones((1, 1, 1), np.float32)
    given: Arrays = {"u": one, "A": -one[0], "B": single, "C": 0 * single, "state": 0 * one}
    exact = x.astype(np.float64)

    _, dt = scan_selective(cpu_library, given | {"delta": column})
    np.testing.assert_allclose(dt[0, :, 0], np.logaddexp(0, exact), rtol=5e-7)
    y, _ = scan_selective(cpu_library, given | {"delta": 0 * one, "z": column, "D": one[0, :, 0]})
    np.testing.assert_allclose(y[0, :, 0], exact / (1 + np.exp(-exact)), rtol=5e-7, atol=1e-37)
    negative = np.abs(column)
    _, power = scan_selective(cpu_library, given | {"delta": negative, "u": 0 * one, "state": one}, False)
    np.testing.assert_allclose(power[0, :, 0], np.exp(-np.abs(exact)), rtol=0, atol=1.2e-7)
