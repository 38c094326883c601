"""Named configurations of SSM video diffusion models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from videossm.models.ssm_vdm.config import DiffusionConfig, SsmVdmConfig, TemporalConfig, UNetConfig
from videossm.models.videossm.presets import SHAPES_VOCABULARY


def shapes_clip() -> SsmVdmConfig:
    """The shapes world at 32 x 32 pixels in clips of 16 frames: bidirectional S4D, norms over the clip."""
    return SsmVdmConfig(
        name="ssm-vdm-shapes",
        height=32,
        width=32,
        fps=8.0,
        batch=1,
        mode="clip",
        frames=16,
        patch=4,
        unet=UNetConfig(
            dim=48,
            mults=(1, 2),
            channels=48,
            heads=2,
            temporal=TemporalConfig("s4d", 20, bidirectional=True, state=16),
            time_width=4,
            cond_dim=64,
        ),
        diffusion=DiffusionConfig(timesteps=256, prediction="x0", sampler="ddim", steps=16, shift=3.0),
        vocab_size=SHAPES_VOCABULARY,
        text_len=12,
    )


def shapes_stream() -> SsmVdmConfig:
    """The same network without a way back in time, norms frame by frame: an endless video, 8 frames a chunk."""
    clip = shapes_clip()
    unet = replace(clip.unet, norm="frame", temporal=replace(clip.unet.temporal, bidirectional=False))
    return replace(clip, name="ssm-vdm-shapes-stream", mode="stream", frames=8, unet=unet)


def test(
    kind: str = "s4d", version: int = 20, bidirectional: bool = True, norm: str = "clip", mode: str = "clip"
) -> SsmVdmConfig:
    """Two levels of 8 and 16 channels on 8 x 8 pixels: what the tests run in milliseconds."""
    wide = version in (1, 8) or (kind, version) == ("s6", 10)
    return SsmVdmConfig(
        name="ssm-vdm-test",
        height=8,
        width=8,
        fps=8.0,
        batch=1,
        mode=mode,
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


def test_stream() -> SsmVdmConfig:
    """A stream of that size with prompts, whose scans are selective."""
    small = replace(test("s6", bidirectional=False, norm="frame", mode="stream"), name="ssm-vdm-test-stream", frames=4)
    unet = replace(small.unet, cond_dim=8)
    diffusion = replace(small.diffusion, prediction="x0")
    return replace(small, unet=unet, diffusion=diffusion, vocab_size=SHAPES_VOCABULARY, text_len=12)


PRESETS: dict[str, Callable[[], SsmVdmConfig]] = {
    "ssm-vdm-shapes": shapes_clip,
    "ssm-vdm-shapes-stream": shapes_stream,
    "ssm-vdm-test": test,
    "ssm-vdm-test-stream": test_stream,
}
