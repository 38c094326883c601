"""What training of the SSM video diffusion models starts from, and what it is shown."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from videossm.models.shapes.detector import observe
from videossm.models.shapes.evaluation import ATTRIBUTES, adherence_cases
from videossm.models.shapes.world import render
from videossm.models.ssm_vdm import presets
from videossm.models.ssm_vdm.model import random_model
from videossm.models.ssm_vdm.step import Decode

SCRIPTS = Path(__file__).parents[2] / "training" / "ssm_vdm"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("train")


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("scenes")


def test_the_way_back_starts_as_the_way_on(script: ModuleType) -> None:
    model = random_model(presets.test(bidirectional=True))
    layer, _ = next(model.unet.temporal_layers())
    for parameter in layer.fc_out.parameters():
        nn.init.normal_(parameter)
    script.mirror(model)
    still = torch.randn(1, 1, 5, 8)  # one frame: both ways are the same
    onward, _ = layer(still, [])
    layer.get_submodule("s4d_rev").D.add_(1)
    assert not torch.equal(layer(still, [])[0], onward)
    layer.get_submodule("s4d_rev").D.sub_(1)
    forward = presets.test(bidirectional=False)
    alone, _ = next(random_model(forward).unet.temporal_layers())
    alone.load_state_dict({name: x for name, x in layer.state_dict().items() if name in alone.state_dict()})
    alone.get_parameter("fc_out.weight").mul_(2)
    torch.testing.assert_close(alone(still, [])[0], onward, rtol=0, atol=1e-5)


def test_ground_truth_at_the_size_of_the_small_models_is_recognised(scenes: ModuleType) -> None:
    """By the detector of twice as large frames, in every clip."""
    rng, wrong = np.random.default_rng(0), []
    for prompt, _ in adherence_cases(seeds=4)[:60]:
        seen = observe(render(scenes.small_world(prompt, rng, 32), 40))
        found = [getattr(seen, name) for name in ATTRIBUTES]
        if found != [getattr(prompt, name) for name in ATTRIBUTES] or not seen.present.all():
            wrong.append(f"{prompt}: {found}")
    assert not wrong


def test_samples_decode_to_the_frames(scenes: ModuleType) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(Decode(4)(scenes.samples(frames, 4)).numpy(), frames)
