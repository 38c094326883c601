"""The reader of the public code's checkpoints, on files made here: no public weights exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from videossm.models.ssm_vdm import presets
from videossm.models.ssm_vdm.diffusion import alpha_bars
from videossm.models.ssm_vdm.model import SsmVdm, random_model
from videossm.models.ssm_vdm.public import ATTENTION_BIAS, PREFIX, SCHEDULE, PublicSetting, load_public
from videossm.models.videossm.checkpoint import CheckpointError

SETTING = PublicSetting(version=20, height=8, width=8, frames=8, fps=8.0)


def averaged(model: SsmVdm) -> dict[str, Tensor]:
    """What `ema` holds."""
    bars = alpha_bars(model.config.diffusion.timesteps).float()
    schedule = {name: torch.ones_like(bars) for name in SCHEDULE} | {"alphas_cumprod": bars}
    weights = {PREFIX + name: public_form(name, tensor) for name, tensor in model.unet.state_dict().items()}
    left = {PREFIX + "init_conv.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    return schedule | weights | left | {PREFIX + ATTENTION_BIAS: torch.zeros(32, 1)}


def public_form(name: str, tensor: Tensor) -> Tensor:
    """As the public code has it, whose convolutions are three-dimensional."""
    if name.endswith(".gamma"):
        return tensor[None, :, None, None, None]
    return tensor.unsqueeze(2) if tensor.ndim == 4 else tensor


def save(path: Path, ema: Any) -> Path:
    torch.save({"step": 7, "model": {}, "ema": ema, "opt": {}, "scaler": {}}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "version", "bidirectional"),
    [("s4d", 20, True), ("s4d", 20, False), ("s4d", 1, True), ("s4d", 8, True), ("s6", 2, True), ("s6", 10, False)],
)
def test_sizes_and_weights_are_read_off(tmp_path: Path, kind: str, version: int, bidirectional: bool) -> None:
    model = random_model(presets.test(kind, version, bidirectional))
    setting = PublicSetting(version=version, height=8, width=8, frames=8, fps=8.0)
    loaded = load_public(save(tmp_path / "model-7.pt", averaged(model)), setting)
    assert loaded.config.unet == model.config.unet
    assert loaded.config.diffusion.steps == loaded.config.diffusion.timesteps == 20
    for name, tensor in model.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({PREFIX + "mid_block1.extra": torch.zeros(1)}, r"1 unexpected \(mid_block1.extra\)"),
        ({PREFIX + "null_cond_emb": torch.zeros(1, 4)}, r"unexpected \(null_cond_emb\)"),
        ({"optimizer.state": torch.zeros(1)}, "got optimizer.state"),
        ({"alphas_cumprod": torch.linspace(1, 0, 20)}, "another noise schedule"),
        ({PREFIX + "final_conv.1.bias": torch.full((3,), torch.nan)}, "NaN or infinite values in final_conv.1.bias"),
        ({PREFIX + "final_conv.1.bias": torch.zeros(4)}, "1 mis-shaped"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(tmp_path: Path, change: dict[str, Tensor], message: str) -> None:
    ema = averaged(random_model(presets.test())) | change
    with pytest.raises(CheckpointError, match=message):
        load_public(save(tmp_path / "model-7.pt", ema), SETTING)


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    ema = averaged(random_model(presets.test()))
    del ema[PREFIX + "ups.1.2.fn.norm.gamma"]
    with pytest.raises(CheckpointError, match=r"1 missing \(ups.1.2.fn.norm.gamma\)"):
        load_public(save(tmp_path / "model-7.pt", ema), SETTING)


def test_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    path = save(tmp_path / "model-7.pt", averaged(random_model(presets.test("s4d", 10, True))))
    with pytest.raises(CheckpointError, match="got those of version 10, expected version 20") as caught:
        load_public(path, SETTING)
    assert "\n" not in str(caught.value)


def test_attention_is_refused(tmp_path: Path) -> None:
    ema = averaged(random_model(presets.test()))
    ema = {name: tensor for name, tensor in ema.items() if "temporal_layer" not in name}
    ema[PREFIX + "init_temporal_layer.fn.fn.fn.to_qkv.weight"] = torch.zeros(4, 4)
    with pytest.raises(CheckpointError, match="temporal attention is not implemented"):
        load_public(save(tmp_path / "model-7.pt", ema), SETTING)


@pytest.mark.parametrize("content", [b"no checkpoint", b""], ids=["text", "empty"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model-7.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        load_public(path, SETTING)


def test_a_file_without_ema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="under 'ema'"):
        load_public(save(tmp_path / "model-7.pt", None), SETTING)
