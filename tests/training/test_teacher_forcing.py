"""Training sees each chunk as the rollout does; its optimiser is torch's."""

from __future__ import annotations

import importlib
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from videossm.models.videossm.memory import RHO_MIN
from videossm.models.videossm.model import VideoModel, random_model
from videossm.models.videossm.presets import test as small_preset
from videossm.models.videossm.rollout import ReferenceRollout
from videossm.models.videossm.step import Step

SCRIPTS = Path(__file__).parents[2] / "training" / "shapes"
BATCH, CHUNKS, COPIES = 2, 7, 2  # the window is full at chunk 3 and the memory in use from chunk 4 on
CONFIG = small_preset().replace(batch=BATCH, sampler={"kind": "euler", "sigmas": (1.0,)})
TOLERANCE = 1e-5  # relative error of fp32 in the Frobenius norm
EVICTED = [0, 0, 0, 0, 1, 2, 3]  # chunks, when chunk i is made


@pytest.fixture
def teacher_forcing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("teacher_forcing")


@pytest.fixture
def muon(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("muon")


@pytest.fixture(scope="module")
def model() -> VideoModel:
    model = random_model(CONFIG, seed=4)
    noise = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for block in model.transformer.blocks:  # as trained: a memory that forgets, writes and is read, by head
            assert block.memory is not None, "the small preset has a memory"
            heads = torch.randn(3, CONFIG.transformer.heads, generator=noise)
            block.memory.decay_bias.copy_(heads[0] - 3)
            block.memory.decay_rate.copy_(heads[1] / 2)
            block.memory.router_bias.copy_(heads[2] + 1)
    return model


class Clips:
    """Clean chunks, their noisy copies, one noise level a copy and chunk (a step takes one for its batch), prompts."""

    def __init__(self) -> None:
        noise = torch.Generator().manual_seed(5)
        shape = BATCH, CHUNKS, *CONFIG.latent_shape[1:]
        self.clean = torch.randn(shape, generator=noise)
        self.noisy = torch.randn((COPIES, *shape), generator=noise)
        self.sigma = 0.1 + 0.9 * torch.rand(COPIES, CHUNKS, generator=noise)
        length = CONFIG.transformer.text_len
        self.ids = torch.randint(2, 28, (BATCH, length), generator=noise)
        self.mask = (torch.arange(length) < torch.tensor([[6], [4]])).long()
        self.rho = torch.tensor([evicted / max(1, i) for i, evicted in enumerate(EVICTED)])

    def predict(self, teacher_forcing: ModuleType, model: VideoModel, rho: Tensor) -> Tensor:
        layout = teacher_forcing.Layout(CONFIG.window, CHUNKS)
        assert layout.evicted == EVICTED, f"evicted: got {layout.evicted}, expected {EVICTED}"
        sigma = self.sigma[:, None].expand(-1, BATCH, -1)
        text = model.text_encoder(self.ids, self.mask)
        rho = rho.expand(BATCH, -1)
        return teacher_forcing.predict(model.transformer, layout, self.clean, self.noisy, sigma, text, rho)


class ForcedStep:
    """Stands for a rollout's step: notes what the real one predicts for the noisy copies, returns the clean chunk."""

    def __init__(self, step: Step, clips: Clips) -> None:
        self.step, self.clips = step, clips
        self.predictions: list[Tensor] = []  # [COPIES, B, F, C, h, w] of each chunk

    def __call__(self, latent: Tensor, sigma: Tensor, sigma_next: Tensor, *rest: Any, **named: Any) -> Any:
        if sigma.item() == 0:
            return self.step(latent, sigma, sigma_next, *rest, **named)
        clips, chunk = self.clips, len(self.predictions)
        copies = []
        for noisy, level in zip(clips.noisy[:, :, chunk], clips.sigma[:, chunk], strict=True):
            moved, *_ = self.step(noisy, level[None], level[None] - 1, *rest, **named)  # euler: x - prediction
            copies.append(noisy - moved)
        self.predictions.append(torch.stack(copies))
        return clips.clean[:, chunk], [], []


@torch.no_grad()
def test_predict_equals_the_rollout(teacher_forcing: ModuleType, model: VideoModel) -> None:
    clips = Clips()
    rollout = ReferenceRollout(model, clips.ids, clips.mask, lambda chunk, step: clips.clean[:, chunk])
    forced = ForcedStep(rollout.step, clips)
    rollout.step = forced  # type: ignore[assignment]  # a stand-in
    made = list(islice(rollout, CHUNKS))
    torch.testing.assert_close(torch.stack([chunk.latent for chunk in made], 1), clips.clean, atol=0, rtol=0)

    got = clips.predict(teacher_forcing, model, clips.rho)
    for chunk, expected in enumerate(forced.predictions):
        error = float((got[:, :, chunk] - expected).norm() / expected.norm())
        assert error <= TOLERANCE, f"chunk {chunk}: got relative error {error:.1e}, expected at most {TOLERANCE:.0e}"


@torch.no_grad()
def test_rho_is_clamped(teacher_forcing: ModuleType, model: VideoModel) -> None:
    clips = Clips()
    for rho, clamped in ((0.0, RHO_MIN), (2.0, 1.0)):
        got, expected = (clips.predict(teacher_forcing, model, torch.full((CHUNKS,), r)) for r in (rho, clamped))
        torch.testing.assert_close(got, expected, atol=0, rtol=0, msg=f"rho {rho} is not taken as {clamped}")


@torch.no_grad()
def test_predict_first_equals_chunk_0(teacher_forcing: ModuleType, model: VideoModel) -> None:
    clips = Clips()
    layout, text = teacher_forcing.Layout(CONFIG.window, 1), model.text_encoder(clips.ids, clips.mask)
    expected = clips.predict(teacher_forcing, model, clips.rho)[0, :, 0]
    sigma = clips.sigma[0, :1].expand(BATCH)
    got = teacher_forcing.predict_first(model.transformer, layout, clips.noisy[0, :, 0], sigma, text)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


# Newton-Schulz in bf16 is 3% off float64 here, so that is compared coarsely, and in float64 all the rest.
@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-5), (False, 4e-2)], ids=["float64", "bf16"])
def test_batched_muon_equals_torch(
    muon: ModuleType, exact: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if exact:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
    noise, steps, rate, decay = torch.Generator().manual_seed(6), 4, 0.02, 0.01
    shapes = [(48, 32), (32, 48), (16, 16), (48, 32), (16, 16)]
    start = [torch.randn(shape, generator=noise) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimisers = (
        muon.BatchedMuon(ours, lr=rate, weight_decay=decay),
        torch.optim.Muon(theirs, lr=rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(steps):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=noise)
            b.grad = a.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for shape, a, b, x in zip(shapes, ours, theirs, start, strict=True):
        error = float((a.detach() - b.detach()).norm() / (b.detach() - x).norm())
        assert error <= tolerance, f"{shape}: got relative error {error:.1e} of the way, expected at most {tolerance}"
