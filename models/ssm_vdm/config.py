"""Sizes and choices of an SSM video diffusion model. Every literal of a model's size stands in a config.

Source: *SSM Meets Video Diffusion Models* (arXiv 2403.07711) and its public code; field by field, the name that the
code's constructor has for it is given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videossm.models.videossm.config import ConfigError, build

CONFIG_KEY = "videossm_ssm_vdm_config"  # of a checkpoint's metadata, under which its config stands
VERSIONS = {"s4d": (1, 2, 8, 10, 20), "s6": (1, 2, 10, 20)}  # temporal layers that are implemented, by kind
CONVOLUTION_FRAMES = 4  # taps of version 20's causal convolution
LATENT_DOWN = 2  # each level but the last halves height and width


@dataclass(frozen=True)
class TemporalConfig:
    """The layers that mix frames."""

    kind: str  # `s4d` (time-invariant) or `s6` (Mamba's selective scan); temporal_arch without its `bi-`
    version: int  # how the scan is wrapped; ssm_version. 8 is the s4d_version 8 of the code of the paper's v1 to v3
    bidirectional: bool  # a second scan runs from the last frame to the first
    state: int  # real values of state a channel; ssm_hidden_dim
    linear_dim: int = 0  # width of the inner layer of versions 1 and 8 and of s6 version 10; ssm_linear_dim


@dataclass(frozen=True)
class UNetConfig:
    """The three-dimensional UNet."""

    dim: int
    mults: tuple[int, ...]  # channels of each level, in units of `dim`; dim_mults
    channels: int  # of the video
    heads: int  # of the spatial attentions, each 32 wide; attn_heads
    temporal: TemporalConfig
    time_linears: int = 2  # linear layers of the time embedding; timeemb_linears
    time_width: int = 32  # of the time embedding in units of `dim`; 32 in the public code
    groups: int = 8  # of the GroupNorms
    init_kernel: int = 7  # pixels across of the first convolution
    # What a GroupNorm's mean and deviation are taken over. `clip`: all frames, as the public code does; then
    # every frame depends on every other. `frame`: each frame alone, which a stream needs.
    norm: str = "clip"
    cond_dim: int = 0  # width of the prompt's embedding, which joins that of the time; 0: no prompt


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise levels of the training and the sampler that walks down them."""

    timesteps: int  # of the cosine schedule
    prediction: str  # what the network returns: `noise` (the public code) or `x0`, the clean video
    # `ddpm`: ancestral sampling as in the public code, fresh noise at every step. `ddim`: deterministic (eta 0).
    sampler: str
    steps: int  # of the sampler
    # 1: steps evenly spaced over the timesteps. Above it they are denser where there is more noise: the timestep at a
    # share u of the way up is shift u / (1 + (shift - 1) u) of the highest.
    shift: float = 1.0


@dataclass(frozen=True)
class SsmVdmConfig:
    """Everything about a model but its weights."""

    name: str
    height: int  # pixels
    width: int  # pixels
    fps: float
    batch: int  # videos that are made together
    mode: str  # `clip`: a video of `frames` frames at once; `stream`: an endless one, chunk by chunk
    frames: int  # of a clip, or of a chunk of a stream
    patch: int  # pixels across that become channels of one place before the UNet; the public code has 1
    unet: UNetConfig
    diffusion: DiffusionConfig
    vocab_size: int = 0  # words of a prompt; 0: no prompt
    text_len: int = 0  # words of the longest prompt

    def __post_init__(self) -> None:
        validate(self)

    @property
    def streams(self) -> bool:
        """Whether states are carried from chunk to chunk."""
        return self.mode == "stream"

    @property
    def sample_shape(self) -> tuple[int, int, int, int, int]:
        """[B, F, C, h, w] of what the sampler works on."""
        return self.batch, self.frames, self.unet.channels, self.height // self.patch, self.width // self.patch

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SsmVdmConfig:
        """The inverse of `to_dict`. Raises ConfigError on an unknown or a missing field."""
        return build(SsmVdmConfig, values, "config")


def validate(config: SsmVdmConfig) -> None:
    """Raises ConfigError for the first thing that does not hold together."""
    unet, temporal, diffusion = config.unet, config.unet.temporal, config.diffusion

    def need(holds: bool, field_name: str, got: object, expected: object) -> None:
        if not holds:
            raise ConfigError(f"{field_name}: got {got}, expected {expected}; change it")

    may_be_zero = ("linear_dim", "cond_dim", "vocab_size", "text_len")
    for part in (config, unet, temporal, diffusion):
        for f in dataclasses.fields(part):
            if f.type == "int":
                value, least = getattr(part, f.name), 0 if f.name in may_be_zero else 1
                need(value >= least, f.name, value, f"at least {least}")
    need(math.isfinite(config.fps) and config.fps > 0, "fps", config.fps, "a finite number above 0")
    need(temporal.kind in VERSIONS, "temporal.kind", temporal.kind, "s4d or s6")
    versions = VERSIONS[temporal.kind]
    need(temporal.version in versions, "temporal.version", temporal.version, f"one of {versions} for {temporal.kind}")
    need(temporal.state % 2 == 0, "temporal.state", temporal.state, "an even number")
    needs_linear = temporal.version in (1, 8) or (temporal.kind == "s6" and temporal.version == 10)
    need(
        (temporal.linear_dim > 0) == needs_linear,
        "temporal.linear_dim",
        temporal.linear_dim,
        f"{'at least 1' if needs_linear else 0} for {temporal.kind} version {temporal.version}",
    )
    need(bool(unet.mults) and min(unet.mults) >= 1, "unet.mults", unet.mults, "one number, 1 or more, for each level")
    need(unet.dim % unet.groups == 0, "unet.dim", unet.dim, f"a multiple of groups = {unet.groups}")
    need(unet.dim % 2 == 0 and unet.dim >= 4, "unet.dim", unet.dim, "an even number, 4 or more")
    need(unet.time_linears >= 2, "unet.time_linears", unet.time_linears, "at least 2")
    need(unet.init_kernel % 2 == 1, "unet.init_kernel", unet.init_kernel, "an odd number")
    need(unet.norm in ("clip", "frame"), "unet.norm", unet.norm, "clip or frame")
    need(config.mode in ("clip", "stream"), "mode", config.mode, "clip or stream")
    if config.streams and (temporal.bidirectional or unet.norm == "clip"):
        why = "its scans run from the last frame back" if temporal.bidirectional else "its norms are over all frames"
        raise ConfigError(
            f"mode: got stream, expected clip, as {why} and need frames that a stream has not made yet; export clips, "
            "or a model with forward scans and norms frame by frame"
        )
    need(
        unet.channels == 3 * config.patch**2,
        "unet.channels",
        unet.channels,
        f"3 x patch x patch = {3 * config.patch**2}",
    )
    unit = config.patch * LATENT_DOWN ** (len(unet.mults) - 1)
    for side in ("height", "width"):
        got = getattr(config, side)
        need(got % unit == 0, side, got, f"a multiple of {unit} (patch x 2 for each level but the last)")
    need(diffusion.prediction in ("noise", "x0"), "diffusion.prediction", diffusion.prediction, "noise or x0")
    need(diffusion.sampler in ("ddpm", "ddim"), "diffusion.sampler", diffusion.sampler, "ddpm or ddim")
    most = diffusion.timesteps
    need(diffusion.steps <= most, "diffusion.steps", diffusion.steps, f"at most the {most} timesteps of the training")
    need(diffusion.shift >= 1 and math.isfinite(diffusion.shift), "diffusion.shift", diffusion.shift, "1 or more")
    for name in ("vocab_size", "text_len"):
        got = getattr(config, name)
        need((got > 0) == (unet.cond_dim > 0), name, got, f"{'above 0' if unet.cond_dim else 0}, as cond_dim is")
