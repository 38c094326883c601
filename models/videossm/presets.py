"""Named configurations: `videossm-export NAME`."""

from __future__ import annotations

from collections.abc import Callable

from videossm.models.shapes.world import FPS
from videossm.models.videossm.config import (
    AutoencoderConfig,
    ModelConfig,
    SamplerConfig,
    TextEncoderConfig,
    TransformerConfig,
    WindowConfig,
)

SHAPES_VOCABULARY = 32  # entries of the shapes tokenizer, special tokens included
SHAPES_SHIFT = 3.0  # warps the noise levels of its training and its sampler alike


def shapes() -> ModelConfig:
    """The demo model: 64 x 64 pixels at 8 frames a second, trained on the world of `videossm.models.shapes`."""
    return ModelConfig(
        name="shapes",
        height=64,
        width=64,
        fps=FPS,
        transformer=TransformerConfig(
            dim=192,
            ffn_dim=768,
            heads=6,
            layers=6,
            text_len=12,
            text_dim=128,
            latent_channels=12,
            prediction="x0",
        ),
        window=WindowConfig(),
        sampler=SamplerConfig.warped("euler", steps=16, shift=SHAPES_SHIFT),
        text_encoder=TextEncoderConfig(vocab_size=SHAPES_VOCABULARY, layers=1, heads=4),
        autoencoder=AutoencoderConfig(width=192, depth=2),
    )


def videossm_1_3b() -> ModelConfig:
    """The paper's size, on Wan2.1-T2V-1.3B: 480 x 832 pixels, the distilled four-step sampler.

    The transformer is exact. Its text encoder and autoencoder are this project's small ones at Wan's
    interfaces (features of 4096, 16 latent channels), not UMT5-XXL and the Wan VAE.
    """
    return ModelConfig(
        name="videossm-1.3b",
        height=480,
        width=832,
        fps=16.0,
        transformer=TransformerConfig(
            dim=1536, ffn_dim=8960, heads=12, layers=30, text_len=512, text_dim=4096, latent_channels=16
        ),
        window=WindowConfig(),
        sampler=SamplerConfig("renoise", sigmas=(1.0, 0.9375, 5 / 6, 0.625)),
        text_encoder=TextEncoderConfig(vocab_size=SHAPES_VOCABULARY, layers=0, heads=1),
        autoencoder=AutoencoderConfig(width=64, depth=1),
    )


def test() -> ModelConfig:
    """Two small blocks with all that the full model has, and a first chunk of 5 frames before those of 6: for tests."""
    return ModelConfig(
        name="test",
        height=32,
        width=48,
        fps=8.0,
        transformer=TransformerConfig(
            dim=64, ffn_dim=96, heads=4, layers=2, text_len=12, text_dim=32, latent_channels=4
        ),
        window=WindowConfig(),
        sampler=SamplerConfig.warped("renoise", steps=3, shift=5.0),
        text_encoder=TextEncoderConfig(vocab_size=SHAPES_VOCABULARY, layers=1, heads=2),
        autoencoder=AutoencoderConfig(width=16, depth=2, time_scale=2),
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {"shapes": shapes, "videossm-1.3b": videossm_1_3b, "test": test}
