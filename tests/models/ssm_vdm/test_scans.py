"""The selective scan's layer against a loop over frames, in float64, and against mamba-ssm's reference."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from videossm.models.scans.capture import captured_scans
from videossm.models.ssm_vdm.scans import S6Scan

TOLERANCE = 1e-5  # relative, in the Frobenius norm


def frame_by_frame(layer: S6Scan, x: Tensor) -> Tensor:
    """Mamba's recurrence as it is written, for x [B, F, P, E] in float64."""
    weights = {name: tensor.detach().double() for name, tensor in layer.named_parameters()}
    x = x.double()
    parts = (x @ weights["x_proj.weight"].T).split([layer.rank, layer.state, layer.state], -1)
    step = F.softplus(parts[0] @ weights["dt_proj.weight"].T + weights["dt_proj.bias"])
    state = torch.zeros(*x[:, 0].shape, layer.state, dtype=torch.float64)
    outputs = []
    for t in range(x.shape[1]):
        decay = (step[:, t, :, :, None] * -weights["A_log"].exp()).exp()
        state = decay * state + (step[:, t] * x[:, t])[..., None] * parts[1][:, t, :, None, :]
        outputs.append((state * parts[2][:, t, :, None, :]).sum(-1) + weights["D"] * x[:, t])
    return torch.stack(outputs, 1)


def setting() -> tuple[S6Scan, Tensor]:
    torch.manual_seed(0)
    return S6Scan(20, 6, gated=False).requires_grad_(False).eval(), torch.randn(2, 11, 3, 20)


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def test_both_directions() -> None:
    layer, x = setting()
    assert distance(layer.scan(x, None)[0], frame_by_frame(layer, x)) < TOLERANCE
    assert distance(layer.scan(x, None, reverse=True)[0], frame_by_frame(layer, x.flip(1)).flip(1)) < TOLERANCE


def test_chunks_with_the_state_carried() -> None:
    layer, x = setting()
    state: Tensor | None = torch.zeros(layer.state_shape(2, 3))
    outputs = []
    for part in x.split([4, 1, 6], 1):
        y, state = layer.scan(part, state)
        outputs.append(y)
    assert distance(torch.cat(outputs, 1), frame_by_frame(layer, x)) < TOLERANCE


def test_training_has_gradients_and_the_same_outputs() -> None:
    layer, x = setting()
    expected = layer.scan(x, None)[0]
    layer.train().requires_grad_(True)
    outputs = layer.scan(x, None)[0]
    outputs.square().sum().backward()
    assert distance(outputs.detach(), expected) < TOLERANCE
    assert {name for name, tensor in layer.named_parameters() if tensor.grad is None} == set()


def test_the_scan_is_that_of_mamba_ssm() -> None:
    """Against its own reference, which takes the projections that the layer makes."""
    with captured_scans():  # without CUDA kernels it can be imported nowhere else
        pytest.importorskip("mamba_ssm", reason="needs mamba-ssm: make test installs it", exc_type=ImportError)
        reference = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    layer, x = setting()
    batch, frames, places, channels = x.shape
    u = x.permute(0, 2, 3, 1).flatten(0, 1)  # [B P, E, F]
    step, write, read = layer.x_proj(u.mT).split([layer.rank, layer.state, layer.state], -1)
    delta = (step @ layer.dt_proj.weight.T).mT
    expected = reference(
        *(u, delta, -layer.A_log.exp(), write.mT, read.mT, layer.D),
        delta_bias=layer.dt_proj.bias,
        delta_softplus=True,
    )
    expected = expected.reshape(batch, places, channels, frames).permute(0, 3, 1, 2)
    assert distance(layer.scan(x, None)[0], expected) < TOLERANCE
