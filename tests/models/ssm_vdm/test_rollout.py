"""Clips and streams: chunk by chunk equals the whole, and DDPM is the public code's."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from videossm.models.family import NoiseSource
from videossm.models.ssm_vdm import presets
from videossm.models.ssm_vdm.config import VERSIONS, DiffusionConfig, SsmVdmConfig
from videossm.models.ssm_vdm.diffusion import alpha_bars, passes
from videossm.models.ssm_vdm.model import random_model
from videossm.models.ssm_vdm.rollout import frames, samples
from videossm.models.ssm_vdm.step import Decode

FRAMES = 64
KINDS = [(kind, version) for kind, versions in VERSIONS.items() for version in versions]
# Absolute, on videos in [-1, 1], for networks that predict x0. Where random weights predict the noise, the first step
# divides by an alpha of 1e-4, and fp32 was 2e-4 to 1.2e-3 off.
TOLERANCE = 1e-4


def cut(noises: Tensor, length: int) -> NoiseSource:
    """Of noises [steps, B, F, C, h, w], those of a chunk."""
    return lambda chunk, step: noises[step][:, chunk * length : (chunk + 1) * length]


def whole_and_streamed(kind: str, version: int, chunk: int, sampler: str) -> tuple[Tensor, Tensor]:
    def settings(frames: int, mode: str) -> SsmVdmConfig:
        base = presets.test(kind, version, bidirectional=False, norm="frame", mode=mode)
        return replace(base, frames=frames, diffusion=replace(base.diffusion, prediction="x0", sampler=sampler))

    noises = torch.randn(4, 1, FRAMES, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    whole = next(samples(random_model(settings(FRAMES, "clip")), cut(noises, FRAMES)))
    parts = itertools.islice(samples(random_model(settings(chunk, "stream")), cut(noises, chunk)), FRAMES // chunk)
    return whole, torch.cat(list(parts), 1)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("chunk", [4, 8, 16])
def test_a_stream_is_the_whole_clip(chunk: int, sampler: str) -> None:
    whole, streamed = whole_and_streamed("s4d", 20, chunk, sampler)
    assert (whole - streamed).abs().max() < TOLERANCE


@pytest.mark.parametrize(("kind", "version"), KINDS)
def test_every_layer_streams(kind: str, version: int) -> None:
    whole, streamed = whole_and_streamed(kind, version, 16, "ddim")
    assert (whole - streamed).abs().max() < TOLERANCE


def test_ddpm_walks_every_timestep_with_the_public_coefficients() -> None:
    every = passes(DiffusionConfig(timesteps=20, prediction="noise", sampler="ddpm", steps=20))
    bars = alpha_bars(20)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    betas = 1 - bars / before
    expected = {
        "keep": (1 - before) * (1 - betas).sqrt() / (1 - bars),
        "move": betas * before.sqrt() / (1 - bars),
        "spread": (betas * (1 - before) / (1 - bars)).sqrt(),
    }
    for name, values in expected.items():
        got = torch.tensor([getattr(step, name) for step in reversed(every)], dtype=torch.float64)
        torch.testing.assert_close(got, values, rtol=1e-9, atol=1e-12)


def test_ddim_keeps_the_noise_of_a_perfect_prediction() -> None:
    diffusion = presets.test().diffusion
    x0, noise = 0.3, -1.2
    first = passes(diffusion)[0]
    sample = first.alpha * x0 + first.sigma * noise
    for step in passes(diffusion):
        assert sample == pytest.approx(step.alpha * x0 + step.sigma * noise, abs=1e-9)
        sample = step.keep * sample + step.move * x0
    assert sample == pytest.approx(x0, abs=1e-9)


def test_decode_puts_channels_back_into_pixels() -> None:
    sample = torch.linspace(-1.1, 1.1, 2 * 3 * 12 * 4 * 5).reshape(2, 3, 12, 4, 5)
    video = Decode(2)(sample)
    assert video.shape == (2, 3, 8, 10, 3)
    assert video.dtype == torch.uint8
    expected = round((float(sample[1, 2, 4 + 3, 1, 2].clamp(-1, 1)) + 1) * 127.5)  # green, lower right of its four
    assert video[1, 2, 3, 5, 1] == expected


def test_frames_of_a_prompted_model() -> None:
    settings = presets.test()
    unet = replace(settings.unet, cond_dim=6)
    model = random_model(replace(settings, unet=unet, vocab_size=32, text_len=12))
    assert model.prompt is not None
    cond = model.prompt(torch.tensor([[2, 5, 0]]), torch.tensor([[1, 1, 0]]))
    video = frames(model, next(samples(model, lambda _, step: torch.randn(1, 8, 3, 8, 8), cond)))
    assert video.shape == (1, 8, 8, 8, 3)
