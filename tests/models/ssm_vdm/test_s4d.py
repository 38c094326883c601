"""S4D's real matrices against the complex convolution by FFT, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from videossm.models.ssm_vdm.s4d import BLOCK_FRAMES, S4D

TOLERANCE = 1e-5  # relative, in the Frobenius norm, of fp32 against float64
BATCH, CHANNELS, STATE, PLACES = 2, 6, 16, 3


def by_fft(layer: S4D, inputs: Tensor) -> Tensor:
    """The layer's outputs, complex and in float64, without any of its code: inputs [B, E, P, F]."""
    frames = inputs.shape[3]
    kernel = {name: tensor.detach().double() for name, tensor in layer.kernel.named_parameters()}
    dt = kernel["log_dt"].exp()[:, None]
    a = torch.complex(-kernel["log_A_real"].exp(), kernel["A_imag"])
    c = torch.view_as_complex(kernel["C"]) * ((dt * a).exp() - 1) / a
    powers = ((dt * a)[..., None] * torch.arange(frames)).exp()
    taps = 2 * (c[..., None] * powers).sum(1).real
    product = torch.fft.rfft(inputs.double(), n=2 * frames) * torch.fft.rfft(taps, n=2 * frames)[:, None]
    return torch.fft.irfft(product, n=2 * frames)[..., :frames] + layer.D.detach().double()[:, None, None] * inputs


def random_layer() -> S4D:
    """A layer whose channels decay and turn at all speeds."""
    torch.manual_seed(0)
    layer = S4D(CHANNELS, STATE)
    with torch.no_grad():
        layer.kernel.log_dt.copy_(torch.linspace(-7, 0, CHANNELS))
        layer.kernel.log_A_real.add_(torch.randn(CHANNELS, STATE // 2))
    return layer.eval().requires_grad_(False)


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "frames", [1, 2, 16, BLOCK_FRAMES, BLOCK_FRAMES + 1, 3 * BLOCK_FRAMES, 8 * BLOCK_FRAMES, 9 * BLOCK_FRAMES + 5]
)
@pytest.mark.parametrize("fixed", [False, True], ids=["computed", "fixed"])
def test_whole_clip_is_the_convolution(frames: int, fixed: bool) -> None:
    layer, inputs = random_layer(), torch.randn(BATCH, CHANNELS, PLACES, frames)
    if fixed:
        layer.fix(frames, streamed=False)
    outputs, state = layer(inputs, None)
    assert state is None
    assert distance(outputs, by_fft(layer, inputs)) < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 3, 16, 64, 75])
def test_chunks_with_the_state_carried_are_the_whole_clip(chunk: int) -> None:
    layer, inputs = random_layer(), torch.randn(BATCH, CHANNELS, PLACES, 150)
    state, outputs = torch.zeros(layer.state_shape(BATCH, PLACES)), []
    for part in inputs.split(chunk, 3):
        out, state = layer(part, state)
        outputs.append(out)
    assert distance(torch.cat(outputs, 3), by_fft(layer, inputs)) < TOLERANCE


@pytest.mark.parametrize("frames", [7, BLOCK_FRAMES + 3])
def test_reverse_runs_from_the_last_frame(frames: int) -> None:
    layer, inputs = random_layer(), torch.randn(BATCH, CHANNELS, PLACES, frames)
    outputs, _ = layer(inputs, None, reverse=True)
    assert distance(outputs, by_fft(layer, inputs.flip(3)).flip(3)) < TOLERANCE


def test_gradients_reach_every_parameter() -> None:
    layer = random_layer().train().requires_grad_(True)
    layer(torch.randn(BATCH, CHANNELS, PLACES, 9), None)[0].square().sum().backward()
    assert {name for name, tensor in layer.named_parameters() if tensor.grad is None} == set()
