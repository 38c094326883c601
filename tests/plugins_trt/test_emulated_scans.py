"""The CUDA kernels without a GPU: their source on the emulator, every case of benchmarks/scan_cases.py.

What the emulator cannot show is for test_cuda_scans.py and benchmarks/scans_cuda.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scan_cases import Case, GatedCase, SelectiveCase, errors, gated_cases, name, selective_cases
from scan_checks import check, failures, few_cases

from videossm.plugins_trt import GatedDeltaParams, ScanLibrary, SelectiveScanParams
from videossm.plugins_trt.params import BF16, FP32

EVERY_CASE = [*gated_cases(), *selective_cases()]
# How many multiprocessors the emulator says it has decides the warps of a thread block and the lanes of a channel: with
# these and with 1, its default, all that there are.
MULTIPROCESSORS = (0, 3, 1000)


@pytest.fixture
def multiprocessors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("VIDEOSSM_EMULATOR_MULTIPROCESSORS", str(request.param))
    return int(request.param)


@pytest.mark.parametrize("case", EVERY_CASE, ids=name)
def test_a_case_matches_float64(emulated_library: ScanLibrary, case: Case) -> None:
    """In one call, in two, and with the state in place."""
    assert failures([check(emulated_library, case, "cpu")]) == []


@pytest.mark.parametrize("multiprocessors", MULTIPROCESSORS, indirect=True)
@pytest.mark.parametrize("case", few_cases(1), ids=name)
def test_neither_order_nor_share_of_the_work_shows(
    emulated_library: ScanLibrary, case: Case, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads first, by the seed: the same bits. A barrier too few would show as others."""
    tensors = case.tensors()
    output, state = case.run(emulated_library, tensors)
    assert max(errors((output, state), case.expected(tensors))) < max(case.tolerance)
    monkeypatch.setenv("VIDEOSSM_EMULATOR_SEED", "1")
    output_again, state_again = case.run(emulated_library, tensors)
    torch.testing.assert_close(state_again, state, rtol=0, atol=0)
    if output is not None:
        torch.testing.assert_close(output_again, output, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_layers_updated_together(emulated_library: ScanLibrary, dtype: str) -> None:
    """30 layers of 12 heads."""
    case = GatedCase(dtype, 33, 32, 16, batch=30, heads=12, correlation=0.9)
    tensors = case.tensors()
    assert max(errors(case.run(emulated_library, tensors), case.expected(tensors))) < max(case.tolerance)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_nan_stays_in_its_head_or_channel(emulated_library: ScanLibrary, dtype: str) -> None:
    gated = GatedCase(dtype, 40, heads=3)
    tensors = gated.tensors()
    assert tensors["decay"] is not None
    tensors["decay"][:, 5, 1] = torch.nan
    output, state = gated.run(emulated_library, tensors)
    assert output is not None
    assert output[:, 5:, 1].isnan().all()  # and earlier in token 5's block, where products meet it times 0
    assert not output[:, :, ::2].isnan().any()
    assert state.isnan().any(3).any(2).tolist() == [[False, True, False]]

    selective = SelectiveCase(dtype, 40, channels=5, batch=1)
    tensors = selective.tensors()
    assert tensors["delta"] is not None
    tensors["delta"][:, 3, 7] = torch.nan
    y, state = selective.run(emulated_library, tensors)
    assert y is not None
    assert y.isnan().nonzero().tolist() == [[0, 3, token] for token in range(7, 40)]
    assert state.isnan().any(2).tolist() == [[False, False, False, True, False]]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (GatedDeltaParams(1, 1, 1, 48, 16, FP32, 1), "^key_dim: got 48, expected 32, 64 or 128$"),
        (GatedDeltaParams(1, 1, 1, 64, 24, BF16, 1), "^value_dim: got 24, expected a multiple of 16$"),
        (GatedDeltaParams(65536, 1, 1, 64, 16, FP32, 1), "^batch: got 65536, expected at most 65535$"),
        (GatedDeltaParams(1, 1 << 31, 1, 32, 16, FP32, 1), "^tokens: got 2147483648, expected at most"),
        (SelectiveScanParams(1, 1, 1, 257, FP32), "^state_dim: got 257, expected at most 256$"),
        (SelectiveScanParams(1, 1, 1 << 31, 8, FP32), "^tokens: got 2147483648, expected at most"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_a_size_without_a_kernel_is_unsupported_whatever_the_pointers(
    emulated_library: ScanLibrary, params: GatedDeltaParams | SelectiveScanParams, message: str
) -> None:
    with pytest.raises(NotImplementedError, match=message):
        emulated_library.run(params)
    assert emulated_library.workspace_bytes(params) == 0


def test_the_largest_sizes_have_a_workspace(emulated_library: ScanLibrary) -> None:
    """4680 tokens of 360 heads: records of blocks of 32 tokens, and normalised keys for fp16."""
    case = GatedCase("fp16", 4680, 128, 128, batch=30, heads=12)
    records, keys = 360 * 147 * (2 * 32 * 32 * 2 + 400), 4680 * 360 * 128 * 2
    assert 0 <= emulated_library.workspace_bytes(case.params()) - records - keys < 16
    assert 0 <= emulated_library.workspace_bytes(replace(case, dtype="bf16").params()) - records < 16
    assert emulated_library.workspace_bytes(SelectiveCase("fp16", 16384, 8192, 64, batch=4).params()) == 0


def test_a_tensor_out_of_line_is_refused(emulated_library: ScanLibrary) -> None:
    case = GatedCase("bf16", 3, 32, 16)
    tensors = case.tensors()
    key = tensors["key"]
    assert key is not None
    shifted = torch.empty(key.numel() + 1, dtype=key.dtype)[1:].view(key.shape)
    with pytest.raises(ValueError, match=r"^key: got address 0x[0-9a-f]+, expected a multiple of 16$"):
        case.run(emulated_library, {**tensors, "key": shifted})
