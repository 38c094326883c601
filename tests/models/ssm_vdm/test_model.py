"""Configs that cannot work are refused in one line that names the field; checkpoints come back as they were saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from videossm.models.ssm_vdm import presets
from videossm.models.ssm_vdm.config import SsmVdmConfig
from videossm.models.ssm_vdm.model import load_checkpoint, random_model, save_checkpoint
from videossm.models.videossm.checkpoint import CheckpointError
from videossm.models.videossm.config import ConfigError


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_survive_json(name: str) -> None:
    config = presets.PRESETS[name]()
    assert SsmVdmConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("bidirectional", "norm", "why"),
    [(True, "frame", "its scans run from the last frame back"), (False, "clip", "its norms are over all frames")],
)
def test_only_forward_scans_and_norms_by_frame_stream(bidirectional: bool, norm: str, why: str) -> None:
    assert presets.test(bidirectional=False, norm="frame", mode="stream").streams
    with pytest.raises(ConfigError, match=f"mode: got stream, expected clip, as {why}"):
        presets.test(bidirectional=bidirectional, norm=norm, mode="stream")


@pytest.mark.parametrize(
    ("place", "changes", "message"),
    [
        ("temporal", {"kind": "attention"}, "temporal.kind: got attention, expected s4d or s6"),
        ("temporal", {"version": 8, "kind": "s6"}, "temporal.version: got 8, expected one of"),
        ("temporal", {"version": 1}, "temporal.linear_dim: got 0, expected at least 1 for s4d version 1"),
        ("temporal", {"linear_dim": 4}, "temporal.linear_dim: got 4, expected 0"),
        ("temporal", {"state": 5}, "temporal.state: got 5, expected an even number"),
        ("unet", {"dim": 12}, "unet.dim: got 12, expected a multiple of groups = 8"),
        ("unet", {"mults": ()}, "unet.mults: got"),
        ("unet", {"norm": "batch"}, "unet.norm: got batch, expected clip or frame"),
        ("unet", {"cond_dim": 4}, "vocab_size: got 0, expected above 0"),
        ("diffusion", {"prediction": "v"}, "diffusion.prediction: got v, expected noise or x0"),
        ("diffusion", {"sampler": "euler"}, "diffusion.sampler: got euler, expected ddpm or ddim"),
        ("diffusion", {"steps": 21}, "diffusion.steps: got 21, expected at most the 20 timesteps of the training"),
        ("", {"height": 9}, "height: got 9, expected a multiple of 2"),
        ("", {"patch": 2}, "unet.channels: got 3, expected 3 x patch x patch = 12"),
        ("", {"fps": 0.0}, "fps: got 0.0, expected a finite number above 0"),
    ],
)
def test_what_cannot_work_is_refused(place: str, changes: dict[str, object], message: str) -> None:
    config = presets.test()
    if place == "temporal":
        unet = replace(config.unet, temporal=replace(config.unet.temporal, **changes))  # type: ignore[arg-type]
        changes = {"unet": unet}
    elif place:
        changes = {place: replace(getattr(config, place), **changes)}
    with pytest.raises(ConfigError) as caught:
        replace(config, **changes)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_unknown_fields_are_refused() -> None:
    values = presets.test().to_dict()
    values["unet"]["temporal"]["heads"] = 3
    with pytest.raises(ConfigError, match=r"config\.unet\.temporal: got unknown field 'heads'"):
        SsmVdmConfig.from_dict(values)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    settings = presets.test()
    unet = replace(settings.unet, cond_dim=6)
    model = random_model(replace(settings, unet=unet, vocab_size=32, text_len=12))
    save_checkpoint(model, tmp_path / "model.safetensors", torch.float32)
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_file_without_a_config_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="got no metadata 'videossm_ssm_vdm_config'"):
        load_checkpoint(tmp_path / "model.safetensors")
