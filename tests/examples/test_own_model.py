"""The example of a model of one's own: in chunks it is one forward over all frames, in PyTorch and as a plan."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from oracle import Oracle

from videossm.export.build import BuildOptions, build_plan
from videossm.export.verify import verify
from videossm.models.scans.capture import captured_scans
from videossm.runtime import Plan, Rollout
from videossm.runtime.noise import noise

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"
BATCH, FRAMES, CHANNELS, SIZE = 2, 12, 4, (4, 4)
SIGMAS = (1.0, 0.6, 0.25, 0.0)
TOLERANCE = 1e-5  # relative error of fp32 in the Frobenius norm


@pytest.fixture(scope="module")
def example() -> ModuleType:
    with captured_scans():
        pytest.importorskip("mamba_ssm", reason="needs mamba-ssm: make test installs it", exc_type=ImportError)
    spec = importlib.util.spec_from_file_location("own_model", EXAMPLE)
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


@pytest.fixture(scope="module")
def plan(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder, canonical = tmp_path_factory.mktemp("own.plan"), tmp_path_factory.mktemp("canonical")
    return build_plan(example.deployment(), BuildOptions("own_model:deployment", "standard"), folder, canonical).plan


def test_the_plan_equals_the_modules(example: ModuleType, plan: Plan) -> None:
    errors = list(verify(plan, example.deployment(), 4))
    assert [error.index for error in errors] == [0, 1, 2, 3]
    assert all(error.sample <= TOLERANCE and error.pixels <= 1 for error in errors), errors


def test_the_oracle_plays_it_alike(plan: Plan) -> None:
    oracle, rollout = Oracle(plan.path, None, [5]), Rollout(plan, seed=5, threads=1)
    for chunk in rollout.play(4):
        sample, frames = oracle.next()
        assert np.array_equal(sample, rollout.sample) and np.array_equal(frames, chunk.frames), chunk.index


@pytest.mark.slow  # 51,200 steps of the library's scan in Python
def test_100_chunks_of_the_plan_equal_one_long_forward_by_the_libraries_own_scan(
    example: ModuleType, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mamba-ssm's layers and its `selective_scan_ref` over all 400 frames at once."""
    from mamba_ssm.modules import mamba_simple
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    chunks, seed = 100, 3
    rollout = Rollout(plan, seed=seed)
    got = np.concatenate([rollout.sample for _ in rollout.play(chunks)], 1)
    monkeypatch.setattr(mamba_simple, "selective_scan_fn", selective_scan_ref)
    model = example.deployment().engines[0].module
    monkeypatch.setattr(example, "mamba_chunk", lambda layer, hidden, *states: (layer(hidden), *states))
    for layer in model.layers:
        layer.use_fast_path = False
    shape = plan.manifest.sample.shape[1:]
    sample = torch.from_numpy(np.concatenate([noise(seed, chunk, 0, shape) for chunk in range(chunks)]))[None]
    states = model.first_states(1)
    with torch.no_grad():
        for each in plan.manifest.passes:
            levels = (torch.tensor([each.scalars[name]]) for name in ("sigma", "sigma_next"))
            sample, *_ = model(sample, *levels, *states)
    error = np.linalg.norm(got - sample.numpy()) / np.linalg.norm(sample)
    assert error <= TOLERANCE, f"got relative error {error:.1e}, expected at most {TOLERANCE:.0e}"
