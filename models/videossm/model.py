"""A whole model: text encoder, transformer and autoencoder under one roof, as a checkpoint holds them."""

from __future__ import annotations

import torch
from torch import nn

from videossm.models.videossm.autoencoder import Autoencoder
from videossm.models.videossm.config import ModelConfig
from videossm.models.videossm.text_encoder import TextEncoder
from videossm.models.videossm.transformer import Transformer


class VideoModel(nn.Module):
    """The parts of a model; what a deployment runs of them is in `videossm.models.videossm.step`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        transformer = config.transformer
        self.text_encoder = TextEncoder(config.text_encoder, transformer.text_len, transformer.text_dim)
        self.transformer = Transformer(config)
        self.autoencoder = Autoencoder(config.autoencoder, transformer.latent_channels)


def random_model(config: ModelConfig, seed: int = 0) -> VideoModel:
    """A model with random weights, for sizing engines and for tests.

    The blocks' modulation is drawn wide, so that every branch adds to the result; at its usual start a
    block is nearly the identity and hides mistakes.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VideoModel(config)
        for block in model.transformer.blocks:
            nn.init.normal_(block.modulation, std=0.5)
    return model.eval()
