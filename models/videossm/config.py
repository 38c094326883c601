"""Sizes and choices of a model. Every literal of a model's size stands in a config, nowhere else.

Fields that the VideoSSM paper (arXiv 2512.04519) leaves open say so, with the reason for the default.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videossm.models.family import ModelError


class ConfigError(ModelError):
    """A config that cannot describe a model; the message names the field, the value and the mend."""


@dataclass(frozen=True)
class TransformerConfig:
    """The causal diffusion transformer: Wan2.1's block plus the state-space memory."""

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    text_len: int
    text_dim: int
    latent_channels: int
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)  # (time, height, width); time is always 1
    eps: float = 1e-6
    rope_theta: float = 10_000.0
    # What the network's head predicts. `flow`: v = noise - x0 (Wan and its kin). `x0`: the clean
    # latent, turned into the flow inside the network; small models learn it far faster.
    prediction: str = "flow"
    # Off: plain windowed attention, exactly Wan's block. Its weights are then a subset.
    memory: bool = True

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True)
class WindowConfig:
    """What a chunk attends to. All in latent frames."""

    chunk_frames: int = 3
    window_frames: int = 9  # past frames kept, the sink included (open in the paper; LongLive's 12 with the chunk)
    sink_frames: int = 3  # the first frames of the video, never evicted (open in the paper; LongLive's)
    # Positions that RoPE sees (open in the paper). `window`: rank within the window, so a stream has
    # no length limit. `absolute`: index in the video, for checkpoints that were trained so.
    rope_frame: str = "window"


@dataclass(frozen=True)
class SamplerConfig:
    """The few-step schedule, a constant of the plan.

    `euler`: x + (s' - s) v, for flow-matching models. `renoise`: (1 - s') x0 + s' * fresh noise, for
    distilled models only.
    """

    kind: str
    sigmas: tuple[float, ...]  # noise levels of the steps, falling, first 1; the end, 0, is implied

    @staticmethod
    def warped(kind: str, steps: int, shift: float) -> SamplerConfig:
        """`steps` noise levels s = k / steps, warped by shift * s / (1 + (shift - 1) * s)."""
        levels = [(steps - k) / steps for k in range(steps)]
        return SamplerConfig(kind, tuple(shift * s / (1 + (shift - 1) * s) for s in levels))


@dataclass(frozen=True)
class TextEncoderConfig:
    """A small bidirectional transformer over token ids; its width is the transformer's text_dim."""

    vocab_size: int
    layers: int
    heads: int


@dataclass(frozen=True)
class AutoencoderConfig:
    """The causal video autoencoder: `scale` x `scale` pixels to one latent cell, frame by frame."""

    width: int
    depth: int  # residual stages of the decoder; each holds one causal temporal convolution
    scale: int = 8
    # Frames of a latent; the first latent of a video is one frame alone, as in causal video autoencoders (Wan's has 4).
    time_scale: int = 1


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a model but its weights."""

    name: str
    height: int  # pixels
    width: int  # pixels
    fps: float
    transformer: TransformerConfig
    window: WindowConfig
    sampler: SamplerConfig
    text_encoder: TextEncoderConfig
    autoencoder: AutoencoderConfig
    batch: int = 1

    def __post_init__(self) -> None:
        validate(self)

    @property
    def latent_height(self) -> int:
        return self.height // self.autoencoder.scale

    @property
    def latent_width(self) -> int:
        return self.width // self.autoencoder.scale

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a frame, (rows, columns)."""
        _, rows, columns = self.transformer.patch
        return self.latent_height // rows, self.latent_width // columns

    @property
    def frame_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def chunk_tokens(self) -> int:
        return self.frame_tokens * self.window.chunk_frames

    @property
    def window_tokens(self) -> int:
        return self.frame_tokens * self.window.window_frames

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """[B, F, C, h, w] of one chunk."""
        channels = self.transformer.latent_channels
        return self.batch, self.window.chunk_frames, channels, self.latent_height, self.latent_width

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with fields changed; `window=dict(...)` and the like change single nested fields."""
        nested = {
            name: dataclasses.replace(getattr(self, name), **value) if isinstance(value, Mapping) else value
            for name, value in changes.items()
        }
        return dataclasses.replace(self, **nested)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises ConfigError on an unknown or a missing field."""
        return build(ModelConfig, values, "config")


_MOST = 1 << 20  # of any size; the largest vocabularies have a fourth of it


def build(kind: type, values: object, where: str) -> Any:
    """The dataclass `kind` from the plain JSON types of its `asdict`, nested ones too.

    Raises ConfigError, in which `where` names the place, on an unknown or a missing field or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: got {values!r}, expected an object of fields; change it")
    known = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"{where}: got unknown field {unknown[0]!r}, expected some of {sorted(known)}; remove it")
    required = {n for n, f in known.items() if f.default is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if missing:
        raise ConfigError(f"{where}: field {missing[0]!r} is missing; add it")
    types = typing.get_type_hints(kind)
    return kind(**{name: _field(types[name], value, f"{where}.{name}") for name, value in values.items()})


def _field(kind: Any, value: object, where: str) -> Any:
    """`value` as a field annotated with `kind`: a nested config, a tuple of numbers or a plain JSON type."""
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: got {value!r}, expected a list; change it")
        return tuple(_field(item, part, where) for part in value)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: got {value!r}, expected {kind.__name__}; change it")
    return value


def validate(config: ModelConfig) -> None:
    """Raises ConfigError for the first thing that does not hold together."""
    transformer, window, sampler = config.transformer, config.window, config.sampler

    def need(holds: bool, field_name: str, got: object, expected: object) -> None:
        if not holds:
            raise ConfigError(f"{field_name}: got {got}, expected {expected}; change it")

    for part in (config, transformer, window, config.text_encoder, config.autoencoder):
        for f in dataclasses.fields(part):
            value = getattr(part, f.name)
            if f.type == "int":
                least = 0 if f.name == "sink_frames" or (part is config.text_encoder and f.name == "layers") else 1
                need(value >= least, f.name, value, f"at least {least}")
                need(value <= _MOST, f.name, value, f"at most {_MOST}")
            elif f.type == "float":
                need(math.isfinite(value) and value > 0, f.name, value, "a finite number above 0")
    patch_is_right = len(transformer.patch) == 3 and transformer.patch[0] == 1 and min(transformer.patch) >= 1
    need(patch_is_right, "patch", transformer.patch, "(1, rows, columns)")
    need(transformer.freq_dim % 2 == 0, "freq_dim", transformer.freq_dim, "an even number")
    for side, patch in (("height", transformer.patch[1]), ("width", transformer.patch[2])):
        unit = config.autoencoder.scale * patch
        got = getattr(config, side)
        near = max(unit, round(got / unit) * unit)
        need(got % unit == 0, side, got, f"a multiple of {unit} (latent scale x patch), for example {near}")
    need(transformer.dim % transformer.heads == 0, "dim", transformer.dim, f"a multiple of heads = {transformer.heads}")
    need(transformer.head_dim % 2 == 0 and transformer.head_dim >= 6, "dim / heads", transformer.head_dim, "even, >= 6")
    need(transformer.prediction in ("flow", "x0"), "prediction", transformer.prediction, "flow or x0")
    for name in ("window_frames", "sink_frames"):
        got = getattr(window, name)
        need(got % window.chunk_frames == 0, name, got, f"a multiple of chunk_frames = {window.chunk_frames}")
    need(
        0 <= window.sink_frames < window.window_frames,
        "sink_frames",
        window.sink_frames,
        f"0 or more and less than window_frames = {window.window_frames}",
    )
    need(window.rope_frame in ("window", "absolute"), "rope_frame", window.rope_frame, "window or absolute")
    need(sampler.kind in ("euler", "renoise"), "sampler.kind", sampler.kind, "euler or renoise")
    falling = all(a > b for a, b in zip(sampler.sigmas, (*sampler.sigmas[1:], 0.0), strict=True))
    from_one = bool(sampler.sigmas) and sampler.sigmas[0] == 1
    need(from_one and falling, "sampler.sigmas", sampler.sigmas, "falling from 1")
    need(
        transformer.text_dim % config.text_encoder.heads == 0,
        "text_encoder.heads",
        config.text_encoder.heads,
        f"a divisor of text_dim = {transformer.text_dim}",
    )
