"""VideoSSM as it is shipped: its engines, what each reads and writes, its states, passes and precisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from videossm.models.family import Deployment, Engine, Layers, NoiseSource, Pass, Precision, State, Stream, Text, Window
from videossm.models.videossm.config import ModelConfig
from videossm.models.videossm.in_place import IN_PLACE_NUMBERS
from videossm.models.videossm.model import VideoModel
from videossm.models.videossm.rollout import ReferenceRollout
from videossm.models.videossm.step import Decode, LayWindow, MemoryUpdate, PromptEncoder, Step, TurnKeys

KEYS_VALUES = ("key", "value")
GATES = ("decay", "beta")

PRECISION = Precision(
    kept_engines={
        "text_encoder": "runs once a prompt, and every pass reads what it makes",
        "turn": "no weights",
        "memory": "state",
        "decoder": "pixels",
        "decoder_first": "pixels",
    },
    layers=(
        Layers(r"transformer\.blocks\.\d+\.(self_attn\.([qkvo]|q\+k\+v|attention)|cross_attn\.([qo]|attention))"),
        Layers(r"transformer\.blocks\.\d+\.ffn\.[02]"),
        Layers(
            r"transformer\.blocks\.\d+\.memory\.(decay|beta|decay\+beta|out_gate)",
            "gate of the memory, whose error the scan amplifies",
        ),
        Layers(r"transformer\.patch_embedding", "first layer"),
        Layers(r"transformer\.head\.head", "last layer"),
    ),
    fp32_modules=(r"memory\.(decay|beta|decay\+beta)", r"head\.head"),
    fp32_engines=("memory",),
)


def deployment(model: VideoModel, tokenizer: str, examples: Sequence[str] = ()) -> Deployment:
    """`model` as a deployment. `tokenizer`: JSON; `examples`: prompts to calibrate on."""
    config = model.config
    scale = config.autoencoder.time_scale
    frames = config.window.chunk_frames * scale
    size = config.window.chunk_frames
    return Deployment(
        name=config.name,
        stream=Stream(config.batch, config.fps, config.height, config.width, frames - (scale - 1), frames),
        window=Window(
            config.window.window_frames // size, config.window.sink_frames // size, size, config.window.rope_frame
        ),
        text=Text(tokenizer, config.transformer.text_len, examples=tuple(examples)),
        states=_states(config),
        engines=[_text_encoder(model), _turn(model), _step(model), *_memory(config), *_decoders(model)],
        passes=_passes(config),
        precision=PRECISION,
        config=config.to_dict(),
        reference=lambda ids, mask, noise: _reference(model, ids, mask, noise),
    )


def _reference(
    model: VideoModel, ids: Tensor | None, mask: Tensor | None, noise: NoiseSource
) -> Iterator[tuple[Tensor, Tensor]]:
    assert ids is not None and mask is not None, "VideoSSM has a text"
    for chunk in ReferenceRollout(model, ids, mask, noise):
        yield chunk.latent, chunk.frames


def _kinds(config: ModelConfig) -> tuple[str, ...]:
    """What a commit leaves of a block."""
    return (*KEYS_VALUES, *GATES) if config.transformer.memory else KEYS_VALUES


def _seen(config: ModelConfig) -> tuple[str, ...]:
    """What the engine before the passes makes of the window, for each block."""
    return ("seen_key", "seen_value") if _in_place(config) else ("seen_key",)


def _in_place(config: ModelConfig) -> bool:
    return config.window_tokens * config.transformer.dim >= IN_PLACE_NUMBERS


def _states(config: ModelConfig) -> dict[str, State]:
    states = {f"prompt.{name}": State("prompt", half=True) for name in _of_layers(config, KEYS_VALUES)}
    for kind in _kinds(config):
        states |= {name: State("ring", half=kind in KEYS_VALUES) for name in _of_layers(config, (kind,))}
    states |= {name: State("chunk", half=True) for name in _of_layers(config, _seen(config))}
    if config.transformer.memory:
        states |= {name: State("carry") for name in _of_layers(config, ("memory",))}
    return states | {f"cache.{i}": State("carry", half=True) for i in range(config.autoencoder.depth)}


def _passes(config: ModelConfig) -> list[Pass]:
    """The denoising steps, then the clean chunk once more, which leaves its keys, values and gates."""
    levels = [*config.sampler.sigmas, 0.0]
    renoise = config.sampler.kind == "renoise"
    steps = [
        # The last step multiplies its noise by 0.
        Pass("step", {"sigma": sigma, "sigma_next": following}, noise=renoise and following > 0)
        for sigma, following in pairwise(levels)
    ]
    return [*steps, Pass("step", {"sigma": 0.0, "sigma_next": 0.0}, commits=True)]


def _of_layers(config: ModelConfig, kinds: Sequence[str]) -> list[str]:
    return [f"{i}.{kind}" for i in range(config.transformer.layers) for kind in kinds]


def _text_encoder(model: VideoModel) -> Engine:
    config = model.config
    ids = torch.zeros(config.batch, config.transformer.text_len, dtype=torch.int64)
    return Engine(
        "text_encoder",
        PromptEncoder(model.text_encoder, model.transformer),
        (ids, torch.ones_like(ids)),
        {"input_ids": "text.ids", "attention_mask": "text.mask"},
        {f"prompt.{name}": f"state.prompt.{name}" for name in _of_layers(config, KEYS_VALUES)},
        when="prompt",
    )


def _turn(model: VideoModel) -> Engine:
    config = model.config
    in_place = _in_place(config)
    past = _of_layers(config, KEYS_VALUES if in_place else ("key",))
    return Engine(
        "turn",
        LayWindow(model.transformer, config) if in_place else TurnKeys(model.transformer),
        (torch.arange(config.window.window_frames), [_tokens(config, config.window_tokens) for _ in past]),
        {"slot_position": "window.slot_position", **{f"past.{name}": f"state.{name}" for name in past}},
        {f"window.{name}": f"state.{name}" for name in _of_layers(config, _seen(config))},
        when="before",
    )


def _step(model: VideoModel) -> Engine:
    config, transformer = model.config, model.config.transformer
    window, memory, renoise = config.window, transformer.memory, config.sampler.kind == "renoise"
    example = (
        torch.empty(config.latent_shape),
        torch.ones(1),
        torch.zeros(1),
        torch.arange(window.window_frames),
        torch.arange(window.chunk_frames) + window.window_frames,
        [_tokens(config, transformer.text_len) for _ in range(2 * transformer.layers)],
        [_window(config) for _ in range(2 * transformer.layers)],
        [_square(config) for _ in range(transformer.layers if memory else 0)],
        torch.ones(1) if memory else None,
        torch.empty(config.latent_shape) if renoise else None,
    )
    seen = _of_layers(config, ("seen_key", "seen_value" if _in_place(config) else "value"))
    inputs = {
        "latent": "sample",
        "sigma": "pass.sigma",
        "sigma_next": "pass.sigma_next",
        "slot_position": "window.slot_position",
        "frame_position": "window.frame_position",
        **{f"prompt.{name}": f"state.prompt.{name}" for name in _of_layers(config, KEYS_VALUES)},
        **{f"window.{name}": f"state.{name}" for name in seen},
    }
    if memory:
        inputs |= {f"past.{name}": f"state.{name}" for name in _of_layers(config, ("memory",))}
        inputs["rho"] = "window.rho"
    if renoise:
        inputs["noise"] = "noise"
    outputs = {"latent_next": "sample"}
    outputs |= {f"present.{name}": f"state.{name}" for name in _of_layers(config, _kinds(config))}
    if _in_place(config):
        outputs |= {f"written.{name}": f"state.{name}" for name in seen}
    return Engine("step", Step(model.transformer, config), example, inputs, outputs)


def _memory(config: ModelConfig) -> list[Engine]:
    """The memory engine, which has no weights, where the model has a memory."""
    if not config.transformer.memory:
        return []
    tokens, layers = config.chunk_tokens, range(config.transformer.layers)
    evicted = [
        example
        for _ in layers
        for example in (_tokens(config, tokens), _tokens(config, tokens), _gate(config), _gate(config))
    ]
    inputs = {f"evicted.{name}": f"evicted.{name}" for name in _of_layers(config, _kinds(config))}
    inputs |= {f"memory.{i}": f"state.{i}.memory" for i in layers}
    outputs = {f"memory_next.{i}": f"state.{i}.memory" for i in layers}
    example = (evicted, [_square(config) for _ in layers])
    return [Engine("memory", MemoryUpdate(), example, inputs, outputs, when="evict")]


def _decoders(model: VideoModel) -> list[Engine]:
    """One decoder, or one for the first chunk, whose first latent is a single frame, and one for all later ones."""
    config, decoder = model.config, model.autoencoder.decoder
    caches = decoder.empty_caches(config.batch, config.latent_height, config.latent_width)
    names = [f"cache.{i}" for i in range(len(caches))]
    moments = {"decoder": "after"}
    if config.autoencoder.time_scale > 1:
        moments = {"decoder_first": "after_first", "decoder": "after_later"}
    return [
        Engine(
            name,
            Decode(decoder, first=when == "after_first"),
            (torch.empty(config.latent_shape), caches),
            {"latents": "clean", **{cache: f"state.{cache}" for cache in names}},
            {"frames": "frames", **{cache.replace("cache", "cache_next"): f"state.{cache}" for cache in names}},
            when,
        )
        for name, when in moments.items()
    ]


def _tokens(config: ModelConfig, tokens: int) -> Tensor:
    """An example of keys or values [B, tokens, D]."""
    return torch.empty(config.batch, tokens, config.transformer.dim)


def _window(config: ModelConfig) -> Tensor:
    """An example of the keys or values that a pass sees of the window, with room for its own where it has some."""
    if not _in_place(config):
        return _tokens(config, config.window_tokens)
    return _tokens(config, config.window_tokens + config.chunk_tokens)[:, None]


def _gate(config: ModelConfig) -> Tensor:
    """An example of a chunk's decay or beta [B, T, H]."""
    return torch.empty(config.batch, config.chunk_tokens, config.transformer.heads)


def _square(config: ModelConfig) -> Tensor:
    """An example of a memory [B, H, d, d]."""
    dim = config.transformer.head_dim
    return torch.empty(config.batch, config.transformer.heads, dim, dim)
