"""Checkpoints: safetensors, with the model's config as JSON under the metadata key `videossm_config`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from videossm.models.family import ModelError
from videossm.models.videossm.config import ConfigError, ModelConfig
from videossm.models.videossm.model import VideoModel

CONFIG_KEY = "videossm_config"
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WEIGHTS = Path(__file__).parents[1] / "weights"  # checkpoints that ship with the package: NAME.safetensors


class CheckpointError(ModelError):
    """A checkpoint that cannot be used; the message names the file, the tensor and the mend."""


def save_checkpoint(model: VideoModel, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes weights in `dtype` and the config."""
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, {CONFIG_KEY: json.dumps(model.config.to_dict())})
    path.chmod(0o644)  # safetensors makes it private, also inside a wheel


def read_metadata(path: Path) -> dict[str, str]:
    """What a checkpoint carries beside its tensors. Raises CheckpointError."""
    with _open(path) as file:
        return file.metadata() or {}


def read_config(path: Path) -> ModelConfig:
    """The config that a checkpoint carries. Raises CheckpointError."""
    metadata = read_metadata(path)
    if CONFIG_KEY not in metadata:
        raise CheckpointError(
            f"{path}: got no metadata {CONFIG_KEY!r}, expected the model's config there; save it with save_checkpoint"
        )
    try:
        return ModelConfig.from_dict(json.loads(metadata[CONFIG_KEY]))
    except (ConfigError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata {CONFIG_KEY!r}: {error}") from None


@torch.no_grad()
def load_weights(module: nn.Module, path: Path) -> None:
    """Fills `module` from a checkpoint in place, tensor by tensor: no second copy of the weights is made.

    Raises CheckpointError that lists all missing, unexpected and mis-shaped tensors, or all tensors that
    are no numbers a network can have.
    """
    wanted = module.state_dict()  # references, not copies
    bad = []
    with _open(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (no mapping)
        check_keys(path, {name: tuple(tensor.shape) for name, tensor in wanted.items()}, shapes)
        for name, target in wanted.items():
            tensor: Tensor = file.get_tensor(name)
            if tensor.dtype not in WEIGHT_DTYPES:
                bad.append(f"{name} of {tensor.dtype}")
                continue
            target.copy_(tensor)
            if count := int((~torch.isfinite(target)).sum()):
                bad.append(f"{name} with {count} NaN or infinite values")
    if bad:
        raise CheckpointError(
            f"{path}: tensors: got {_first(bad)}, expected finite floating-point weights; use an earlier checkpoint"
        )


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: got no readable safetensors file ({error}), expected a checkpoint; check the path"
        ) from None


def check_keys(path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError that lists the tensors that are missing, unexpected or mis-shaped, by name -> shape."""
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    misshaped = [
        f"{name} {found[name]} instead of {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    problems = [
        f"{len(names)} {kind} ({_first(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path}: tensors: got {', '.join(problems)}, expected the {len(wanted)} tensors of its config; "
            "use the checkpoint of this model"
        )


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
