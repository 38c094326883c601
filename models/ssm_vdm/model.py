"""A whole model: the prompt's encoder and the UNet under one roof, as a checkpoint holds them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from videossm.models.ssm_vdm.config import CONFIG_KEY, SsmVdmConfig
from videossm.models.ssm_vdm.unet import UNet
from videossm.models.videossm.checkpoint import CheckpointError, load_weights, read_metadata
from videossm.models.videossm.config import ConfigError


class PromptEncoder(nn.Module):
    """The sum of the words' embeddings: enough where no two words of a vocabulary change each other's meaning."""

    def __init__(self, vocab_size: int, cond_dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, cond_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask (1 for a word, 0 for padding), int64 [B, L] each, to cond, fp32 [B, cond_dim]."""
        return (self.words(input_ids) * attention_mask[..., None]).sum(1)


class SsmVdm(nn.Module):
    """The parts of a model; what a deployment runs of them is in `videossm.models.ssm_vdm.step`."""

    def __init__(self, config: SsmVdmConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.prompt = PromptEncoder(config.vocab_size, config.unet.cond_dim) if config.vocab_size else None


def random_model(config: SsmVdmConfig, seed: int = 0) -> SsmVdm:
    """A model with random weights, for sizing engines and for tests.

    The norms' gains and biases are drawn too; at their usual start they hide mistakes.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SsmVdm(config)
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
    return model.eval().requires_grad_(False)


def save_checkpoint(model: SsmVdm, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes weights in `dtype` and the config."""
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, {CONFIG_KEY: json.dumps(model.config.to_dict())})
    path.chmod(0o644)  # safetensors makes it private, also inside a wheel


def load_checkpoint(path: Path) -> SsmVdm:
    """The model that `save_checkpoint` wrote, weights in fp32. Raises CheckpointError."""
    metadata = read_metadata(path)
    if CONFIG_KEY not in metadata:
        raise CheckpointError(
            f"{path}: got no metadata {CONFIG_KEY!r}, expected an SSM video diffusion model's config there; "
            "save it with videossm.models.ssm_vdm.model.save_checkpoint"
        )
    try:
        model = SsmVdm(SsmVdmConfig.from_dict(json.loads(metadata[CONFIG_KEY])))
    except (ConfigError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: metadata {CONFIG_KEY!r}: {error}") from None
    load_weights(model, path)
    return model.eval()
