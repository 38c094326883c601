"""Checkpoints: what goes in comes out, and everything wrong with one is said at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from videossm.models.videossm.checkpoint import CONFIG_KEY, CheckpointError, load_weights, read_config, save_checkpoint
from videossm.models.videossm.model import VideoModel, random_model
from videossm.models.videossm.presets import test as small_preset


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(random_model(small_preset(), seed=5), path)
    return path


def rewrite(path: Path, change) -> None:
    tensors, config = load_file(path), read_config(path)
    change(tensors)
    save_file(tensors, path, {CONFIG_KEY: json.dumps(config.to_dict())})


def test_round_trip(checkpoint: Path) -> None:
    model = VideoModel(read_config(checkpoint))
    load_weights(model, checkpoint)
    for name, tensor in random_model(small_preset(), seed=5).state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor.half().float(), atol=0, rtol=0)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "no json"], ids=["lists", "objects", "text"])
def test_a_config_that_is_none(checkpoint: Path, text: str) -> None:
    save_file(load_file(checkpoint), checkpoint, {CONFIG_KEY: text})
    with pytest.raises(CheckpointError, match=f"metadata '{CONFIG_KEY}': "):
        read_config(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.blocks.1.ffn.0.bias"), "1 missing (transformer.blocks.1.ffn.0.bias)"),
        (lambda t: t.update(extra=torch.zeros(2)), "1 unexpected (extra)"),
        (
            lambda t: t.update({"transformer.head.head.bias": torch.zeros(3)}),
            "1 mis-shaped (transformer.head.head.bias (3,) instead of (16,))",
        ),
        (
            lambda t: t["autoencoder.decoder.out.bias"].fill_(float("nan")),
            "autoencoder.decoder.out.bias with 384 NaN or infinite values",
        ),
        (
            lambda t: t.update({"autoencoder.decoder.mean": torch.full((4,), 1e300, dtype=torch.float64)}),
            "autoencoder.decoder.mean with 4 NaN or infinite values",
        ),
        (
            lambda t: t.update({"autoencoder.decoder.mean": torch.zeros(4, dtype=torch.int8)}),
            "autoencoder.decoder.mean of torch.int8",
        ),
        (
            lambda t: t.update({"autoencoder.decoder.mean": torch.zeros(4).to(torch.float8_e4m3fn)}),
            "autoencoder.decoder.mean of torch.float8_e4m3fn",
        ),
    ],
    ids=["missing", "unexpected", "mis-shaped", "NaN", "overflow", "int8", "float8"],
)
def test_wrong_tensors(checkpoint: Path, change, message: str) -> None:
    rewrite(checkpoint, change)
    with pytest.raises(CheckpointError) as error:
        load_weights(VideoModel(small_preset()), checkpoint)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_problems_at_once(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda t: (t.pop("autoencoder.decoder.mean"), t.update(extra=torch.zeros(1))))
    with pytest.raises(CheckpointError, match=r"1 missing \(autoencoder.decoder.mean\), 1 unexpected \(extra\)"):
        load_weights(VideoModel(small_preset()), checkpoint)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_no_checkpoint_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        read_config(path)


def test_no_config(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no metadata 'videossm_config'"):
        read_config(path)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        read_config(tmp_path)
