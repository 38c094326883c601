"""The example's rollout in chunks is one forward over all frames."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from videossm.models.scans.capture import captured_scans

EXAMPLE = Path(__file__).parents[2] / "examples" / "mamba_video.py"
BATCH, FRAMES, CHANNELS, SIZE = 2, 12, 4, (4, 4)
SIGMAS = (1.0, 0.6, 0.25, 0.0)
TOLERANCE = 1e-5  # relative error of fp32 in the Frobenius norm


@pytest.fixture(scope="module")
def example() -> ModuleType:
    with captured_scans():
        pytest.importorskip("mamba_ssm", reason="needs mamba-ssm: make test installs it", exc_type=ImportError)
    spec = importlib.util.spec_from_file_location("mamba_video", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def denoised(model: torch.nn.Module, noise: torch.Tensor, chunk_frames: int) -> torch.Tensor:
    """All steps of each chunk, each from the states that the same step of the chunk before left."""
    steps = list(zip(torch.tensor(SIGMAS)[:-1, None], torch.tensor(SIGMAS)[1:, None], strict=True))
    states = [model.first_states(BATCH) for _ in steps]
    chunks = []
    for sample in noise.split(chunk_frames, 1):
        for index, (sigma, sigma_next) in enumerate(steps):
            sample, *states[index] = model(sample, sigma, sigma_next, *states[index])
        chunks.append(sample)
    return torch.cat(chunks, 1)


@pytest.mark.parametrize("chunk_frames", [1, 3, 5])
def test_chunks_are_the_whole(example: ModuleType, chunk_frames: int) -> None:
    torch.manual_seed(0)
    model = example.MambaVideo(CHANNELS, SIZE).eval()
    noise = torch.randn(BATCH, FRAMES, CHANNELS, *SIZE)
    whole, parts = denoised(model, noise, FRAMES), denoised(model, noise, chunk_frames)
    error = float((parts - whole).norm() / whole.norm())
    assert error <= TOLERANCE, f"got relative error {error:.1e}, expected at most {TOLERANCE:.0e}"
    without = torch.cat([denoised(model, part, chunk_frames) for part in noise.split(chunk_frames, 1)], 1)
    assert (without - whole).norm() > 100 * TOLERANCE * whole.norm(), "the states matter"


def test_decode(example: ModuleType) -> None:
    sample = torch.tensor([-2.0, 0.5, 1.0, 9.0])[:, None, None].expand(BATCH, FRAMES, CHANNELS, *SIZE)
    frames = example.Decode(scale=8)(sample)
    assert frames.dtype == torch.uint8
    assert frames.shape == (BATCH, FRAMES, 32, 32, 3)
    assert frames[0, 0, 0, 0].tolist() == [0, 191, 255]
