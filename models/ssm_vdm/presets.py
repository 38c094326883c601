"""Named configurations of SSM video diffusion models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from videossm.models.ssm_vdm.config import DiffusionConfig, SsmVdmConfig, TemporalConfig, UNetConfig
from videossm.models.videossm.presets import SHAPES_VOCABULARY


def shapes_clip() -> SsmVdmConfig:
    """The shapes world at 32 x 32 pixels in clips of 16 frames: bidirectional S4D, norms over the clip."""
    return SsmVdmConfig(
        name="ssm-shapes-clip",
        height=32,
        width=32,
        fps=8.0,
        frames=16,
        patch=4,
        unet=UNetConfig(
            dim=48,
            mults=(1, 2),
            channels=48,
            heads=2,
            temporal=TemporalConfig("s4d", 20, bidirectional=True, state=16),
            cond_dim=64,
        ),
        diffusion=DiffusionConfig(timesteps=256, prediction="x0", sampler="ddim", steps=16),
        vocab_size=SHAPES_VOCABULARY,
        text_len=12,
    )


def shapes_stream() -> SsmVdmConfig:
    """The same network without a way back in time, norms frame by frame: an endless video, 8 frames a chunk."""
    clip = shapes_clip()
    unet = replace(clip.unet, norm="frame", temporal=replace(clip.unet.temporal, bidirectional=False))
    return replace(clip, name="ssm-shapes-stream", frames=8, unet=unet)


def test(kind: str = "s4d", version: int = 20, bidirectional: bool = True, norm: str = "clip") -> SsmVdmConfig:
    """Two levels of 8 and 16 channels on 8 x 8 pixels: what the tests run in milliseconds."""
    wide = version in (1, 8) or (kind, version) == ("s6", 10)
    return SsmVdmConfig(
        name="test",
        height=8,
        width=8,
        fps=8.0,
        frames=8,
        patch=1,
        unet=UNetConfig(
            dim=8,
            mults=(1, 2),
            channels=3,
            heads=1,
            temporal=TemporalConfig(kind, version, bidirectional, state=4, linear_dim=24 if wide else 0),
            norm=norm,
        ),
        diffusion=DiffusionConfig(timesteps=20, prediction="noise", sampler="ddim", steps=3),
    )


PRESETS: dict[str, Callable[[], SsmVdmConfig]] = {"shapes-clip": shapes_clip, "shapes-stream": shapes_stream}
