"""The causal diffusion transformer: Wan2.1's block with a window of past keys and a state-space memory.

Names of modules equal those of Wan2.1's checkpoints, so its weights map one to one; what VideoSSM adds
stands under `blocks.i.memory`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.models.videossm.config import ModelConfig, TransformerConfig
from videossm.models.videossm.memory import Memory
from videossm.models.videossm.norms import RMSNorm
from videossm.models.videossm.rope import Rotary, Rotation, apply_rope

SIGMA_TO_TIME = 1000.0  # the time embedding takes t = 1000 sigma, as Wan's
TIME_BASE = 10_000.0  # of its frequencies


@dataclass
class Projection:
    """What a block computes from a chunk before any attention; keys and queries carry no rotary embedding."""

    hidden: Tensor  # the modulated input [B, T, D]
    query: Tensor  # [B, T, D]
    key: Tensor  # [B, T, D]
    value: Tensor  # [B, T, D]
    decay: Tensor | None  # log-decay [B, T, H] fp32; None without a memory
    beta: Tensor | None  # [B, T, H] fp32


@dataclass
class Seen:
    """What a block's queries see: the window with the chunk itself behind it, and the memory."""

    key: Tensor  # [B, P + T, D], with rotary embedding
    value: Tensor  # [B, P + T, D]
    memory: Tensor | None  # [B, H, d, d] fp32


@dataclass
class Positions:
    """Rotary embedding and the mask, shared by all blocks."""

    # Of the chunk, [T, pairs]; [B, T, pairs] where the chunks of a batch sit apart.
    rotation: Rotation
    visible: Tensor  # bool [1 or B, 1, 1 or T, P + T]: False for the tokens of an empty slot


class SoftmaxAttention(nn.Module):
    """[B, T, D] x [B, S, D] to [B, T, D]; a module, so that the graph's node bears its name."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
        """`visible` is bool, [1 or B, 1, 1 or T, S]."""
        heads = self.heads
        if torch.compiler.is_exporting():  # one node, which takes the heads packed
            output, *_ = torch.onnx.ops.attention(query, key, value, visible, q_num_heads=heads, kv_num_heads=heads)
            return output
        query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible).transpose(1, 2).flatten(2)


class PatchEmbedding(nn.Conv3d):
    """The strided convolution of Wan's checkpoints, written as the matrix product that it is."""

    def forward(self, patches: Tensor) -> Tensor:
        """Values of the patches [B, T, channels x patch] to tokens [B, T, D]."""
        return F.linear(patches, self.weight.flatten(1), self.bias)


class Attention(nn.Module):
    """q, k, v, o with RMSNorm over the whole width of q and k, before the split into heads."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(config.dim, config.eps) for _ in range(2))
        self.attention = SoftmaxAttention(config.heads)

    def queries(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.norm_q(self.q(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] to keys and values [B, T, D]."""
        return self.norm_k(self.k(x)), self.v(x)


class Block(nn.Module):
    """One layer: self-attention over window and memory, cross-attention to the prompt, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.norm1, self.norm2 = (nn.LayerNorm(dim, config.eps, elementwise_affine=False) for _ in range(2))
        self.norm3 = nn.LayerNorm(dim, config.eps)
        self.self_attn, self.cross_attn = Attention(config), Attention(config)
        self.ffn = nn.Sequential(nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / math.sqrt(dim))
        self.memory = Memory(config) if config.memory else None

    def project(self, x: Tensor, modulation: Tensor) -> Projection:
        """Queries, keys, values and gates of tokens `x` [B, T, D] under `modulation` [B, 6, D]."""
        shift, scale, *_ = (self.modulation + modulation).float().split(1, 1)
        hidden = self.norm1(x) * (1 + scale) + shift
        decay, beta = self.memory.gates(hidden) if self.memory else (None, None)
        return Projection(
            hidden, self.self_attn.queries(hidden), *self.self_attn.keys_values(hidden), decay=decay, beta=beta
        )

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        projection: Projection,
        seen: Seen,
        prompt: tuple[Tensor, Tensor],
        positions: Positions,
        rho: Tensor | None,
    ) -> Tensor:
        """The block's output [B, T, D] for tokens `x` whose `projection` is given.

        `prompt`: keys and values [B, L, D]. `rho`: see `Memory.read`; None without a memory.
        """
        _, _, gate1, shift2, scale2, gate2 = (self.modulation + modulation).float().split(1, 1)
        query = apply_rope(projection.query, positions.rotation, self.heads)
        context = self.self_attn.attention(query, seen.key, seen.value, positions.visible)
        if self.memory and seen.memory is not None and rho is not None:
            context = context + self.memory.read(projection.query, projection.hidden, seen.memory, rho)
        x = x + gate1 * self.self_attn.o(context.to(x.dtype))
        query = self.cross_attn.queries(self.norm3(x))
        x = x + self.cross_attn.o(self.cross_attn.attention(query, *prompt))
        return x + gate2 * self.ffn(self.norm2(x) * (1 + scale2) + shift2)


class Head(nn.Module):
    """Last norm and projection to patches, modulated by the time embedding itself."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, math.prod(config.patch) * config.latent_channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / math.sqrt(config.dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + time[:, None]).float().split(1, 1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class Transformer(nn.Module):
    """All blocks with their embeddings; `models.step` runs it on one chunk, training on many at once."""

    blocks: Sequence[Block]
    time_frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.transformer
        c = self.config
        self.grid = config.grid
        self.patch_embedding = PatchEmbedding(c.latent_channels, c.dim, c.patch, stride=c.patch)
        self.text_embedding = nn.Sequential(nn.Linear(c.text_dim, c.dim), nn.GELU("tanh"), nn.Linear(c.dim, c.dim))
        self.time_embedding = nn.Sequential(nn.Linear(c.freq_dim, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))  # type: ignore[assignment]  # hides what it holds
        self.head = Head(c)
        frequencies = TIME_BASE ** (-torch.arange(c.freq_dim // 2, dtype=torch.float64) / (c.freq_dim // 2))
        self.register_buffer("time_frequencies", frequencies.float(), persistent=False)
        window = config.window
        positions = window.window_frames + window.chunk_frames if window.rope_frame == "window" else None
        self.rope = Rotary(self.grid, c.head_dim, c.rope_theta, positions)

    def prompt_state(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Text features [B, L, text_dim] to each block's prompt keys and values [B, L, D]."""
        context = self.text_embedding(text)
        return [block.cross_attn.keys_values(context) for block in self.blocks]

    def time_state(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels [B] to the time embedding [B, D] and the blocks' modulation [B, 6, D]."""
        # In fp32, where Wan has fp64, which few deployments run: at most 6e-5 rad off at t = 1000.
        angles = SIGMA_TO_TIME * sigma[:, None] * self.time_frequencies
        time = self.time_embedding(torch.cat([angles.cos(), angles.sin()], -1))
        return time, self.time_projection(time).unflatten(-1, (6, -1))

    def embed(self, latent: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] to tokens [B, T, D]."""
        _, rows, columns = self.config.patch
        batch, frames, channels = latent.shape[:3]
        patches = latent.reshape(batch, frames, channels, self.grid[0], rows, self.grid[1], columns)
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
        return self.patch_embedding(patches)

    def unembed(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Tokens [B, T, D] and the time embedding [B, D] to the head's prediction [B, F, C, h, w] fp32."""
        _, rows, columns = self.config.patch
        height, width = self.grid
        patches = self.head(tokens, time).float()
        patches = patches.reshape(len(tokens), -1, height, width, rows, columns, self.config.latent_channels)
        # 'fhwpqrc->cfphqwr', the channel being the fastest of a patch.
        return patches.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
