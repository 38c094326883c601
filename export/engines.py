"""The four engines of a plan: what each is traced from and what its tensors are called.

Tensors with a fixed role are named in the runtime's contract; those of layers are named here and nowhere
else: the manifest lists them, and runtimes read the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videossm.models.config import ModelConfig
from videossm.models.model import VideoModel
from videossm.models.step import Decode, MemoryUpdate, PromptEncoder, Step
from videossm.runtime import contract


@dataclass
class EngineSpec:
    """One graph to trace. Its example inputs are never read, so they are left empty: pages of them cost no memory."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]  # example inputs: positional arguments of `module`, lists of tensors allowed
    input_names: list[str]
    output_names: list[str]
    levels: tuple[float, ...] = ()  # all that the input `sigma` can be, where there is one


def engine_specs(model: VideoModel) -> list[EngineSpec]:
    """The engines of `model`, in the order in which a chunk's data meets them."""
    specs = [_text_encoder(model), _step(model), memory_spec(model.config), _decoder(model)]
    return [spec for spec in specs if spec is not None]


def memory_spec(config: ModelConfig) -> EngineSpec | None:
    """The memory engine, of which there is one where the model has a memory; it has no weights."""
    transformer = config.transformer
    if not transformer.memory:
        return None
    tokens = config.chunk_tokens
    evicted = [
        example
        for _ in range(transformer.layers)
        for example in (_tokens(config, tokens), _tokens(config, tokens), _gate(config), _gate(config))
    ]
    return EngineSpec(
        "memory",
        MemoryUpdate(),
        (evicted, [_square(config) for _ in range(transformer.layers)]),
        _of_layers(config, "evicted", ("key", "value", "decay", "beta"))
        + [f"memory.{i}" for i in range(transformer.layers)],
        [f"memory_next.{i}" for i in range(transformer.layers)],
    )


def wiring(config: ModelConfig) -> dict[str, Any]:
    """The manifest's `window`, `memory`, `prompt` and `caches`: which tensors form a state."""
    layers = range(config.transformer.layers)
    memory = config.transformer.memory
    kinds = ("key", "value", "decay", "beta") if memory else ("key", "value")
    return {
        "window": [
            {
                "present": f"present.{i}.{kind}",
                "past": f"past.{i}.{kind}" if kind in ("key", "value") else None,
                "evicted": f"evicted.{i}.{kind}" if memory else None,
            }
            for i in layers
            for kind in kinds
        ],
        "memory": [
            {"read": f"past.{i}.memory", "past": f"memory.{i}", "present": f"memory_next.{i}"} for i in layers if memory
        ],
        "prompt": _of_layers(config, "prompt"),
        "caches": [{"past": f"cache.{i}", "present": f"cache_next.{i}"} for i in range(config.autoencoder.depth)],
    }


def _of_layers(config: ModelConfig, name: str, kinds: tuple[str, ...] = ("key", "value")) -> list[str]:
    return [f"{name}.{i}.{kind}" for i in range(config.transformer.layers) for kind in kinds]


def _text_encoder(model: VideoModel) -> EngineSpec:
    config = model.config
    ids = torch.zeros(config.batch, config.transformer.text_len, dtype=torch.int64)
    return EngineSpec(
        "text_encoder",
        PromptEncoder(model.text_encoder, model.transformer),
        (ids, torch.ones_like(ids)),
        [contract.INPUT_IDS, contract.ATTENTION_MASK],
        _of_layers(config, "prompt"),
    )


def _step(model: VideoModel) -> EngineSpec:
    config, transformer = model.config, model.config.transformer
    latent, noise = torch.empty(config.latent_shape), torch.empty(config.latent_shape)
    window, memory, renoise = config.window, transformer.memory, config.sampler.kind == "renoise"
    kinds = ("key", "value", "decay", "beta") if memory else ("key", "value")
    inputs = (
        latent,
        torch.ones(1),
        torch.zeros(1),
        torch.arange(window.window_frames),
        torch.arange(window.chunk_frames) + window.window_frames,
        [_tokens(config, transformer.text_len) for _ in range(2 * transformer.layers)],
        [_tokens(config, config.window_tokens) for _ in range(2 * transformer.layers)],
        [_square(config) for _ in range(transformer.layers if memory else 0)],
        torch.ones(1) if memory else None,
        noise if renoise else None,
    )
    names = [contract.LATENT, contract.SIGMA, contract.SIGMA_NEXT, contract.SLOT_POSITION, contract.FRAME_POSITION]
    names += _of_layers(config, "prompt") + _of_layers(config, "past")
    names += [*_of_layers(config, "past", ("memory",)), contract.RHO] if memory else []
    names += [contract.NOISE] if renoise else []
    return EngineSpec(
        "step",
        Step(model.transformer, config),
        inputs,
        names,
        [contract.LATENT_NEXT, *_of_layers(config, "present", kinds)],
        (*config.sampler.sigmas, 0.0),
    )


def _decoder(model: VideoModel) -> EngineSpec:
    config = model.config
    decoder = model.autoencoder.decoder
    caches = decoder.empty_caches(config.batch, config.latent_height, config.latent_width)
    return EngineSpec(
        "decoder",
        Decode(decoder),
        (torch.empty(config.latent_shape), caches),
        [contract.LATENTS, *(f"cache.{i}" for i in range(len(caches)))],
        [contract.FRAMES, *(f"cache_next.{i}" for i in range(len(caches)))],
    )


def _tokens(config: ModelConfig, tokens: int) -> Tensor:
    """An example of keys or values [B, tokens, D]."""
    return torch.empty(config.batch, tokens, config.transformer.dim)


def _gate(config: ModelConfig) -> Tensor:
    """An example of a chunk's decay or beta [B, T, H]."""
    return torch.empty(config.batch, config.chunk_tokens, config.transformer.heads)


def _square(config: ModelConfig) -> Tensor:
    """An example of a memory [B, H, d, d]."""
    dim = config.transformer.head_dim
    return torch.empty(config.batch, config.transformer.heads, dim, dim)
