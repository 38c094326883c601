"""The CUDA kernels on a GPU: every case of benchmarks/scan_cases.py. Without one, see test_emulated_scans.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from kernel_resources import build
from scan_cases import Case, GatedCase, SelectiveCase, gated_cases, name, on, selective_cases
from scan_checks import check, failures, wide_cases

from videossm.plugins_trt import ScanLibrary

FOLDER = Path(__file__).parents[2] / "build" / "tests" / "kernels"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: PyTorch sees none"),
    pytest.mark.skipif(shutil.which("nvcc") is None or shutil.which("cmake") is None, reason="needs nvcc and cmake"),
]


@pytest.fixture(scope="session")
def cuda_library() -> ScanLibrary:
    """For this device alone."""
    major, minor = torch.cuda.get_device_capability()
    build(f"{major}{minor}", FOLDER)
    return ScanLibrary(FOLDER / f"{major}{minor}" / "libvideossm_scans_cuda.so")


@pytest.mark.parametrize("case", [*gated_cases(), *selective_cases()], ids=name)
def test_a_case_matches_float64(cuda_library: ScanLibrary, case: Case) -> None:
    """In one call, in two, and with the state in place."""
    assert failures([check(cuda_library, case, "cuda")]) == []


def test_wide_cases_match_float64(cuda_library: ScanLibrary) -> None:
    """So many heads and channels that the device is full."""
    cases = wide_cases(torch.cuda.get_device_properties(0).multi_processor_count)
    assert failures([check(cuda_library, case, "cuda") for case in cases]) == []


@pytest.mark.parametrize(
    "case",
    [
        GatedCase("bf16", 4680, 128, 128, batch=30, heads=12, correlation=0.9),
        SelectiveCase("bf16", 4096, 4096, batch=1),
    ],
    ids=name,
)
def test_a_stream_of_its_own(cuda_library: ScanLibrary, case: Case) -> None:
    """Large scans in a row, each from the state of the one before: the same bits as on the default stream."""
    tensors = on("cuda", case.tensors())
    ends = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.current_stream())
        state = tensors["state"]
        with torch.cuda.stream(stream):
            for _ in range(3):
                _, state = case.run(cuda_library, {**tensors, "state": state}, stream=stream.cuda_stream)
        stream.synchronize()
        ends.append(state)
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_a_scan_is_captured_in_a_graph(cuda_library: ScanLibrary) -> None:
    """Launches alone, which a CUDA graph replays."""
    case = GatedCase("bf16", 70)
    tensors = on("cuda", case.tensors())
    output, state = (torch.empty_like(result) for result in case.run(cuda_library, tensors) if result is not None)
    expected = case.run(cuda_library, tensors)
    params = case.params()
    workspace = torch.empty(cuda_library.workspace_bytes(params), dtype=torch.uint8, device="cuda")
    params.workspace_bytes = workspace.numel()
    given = {**tensors, "output": output, "last_state": state, "workspace": workspace}
    for member, tensor in given.items():
        assert tensor is not None
        setattr(params, member, tensor.data_ptr())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda_library.run(params, torch.cuda.current_stream().cuda_stream)
    output.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close((output, state), expected, rtol=0, atol=0)
