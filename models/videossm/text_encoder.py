"""The small text encoder: token ids to text features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videossm.models.videossm.config import TextEncoderConfig
from videossm.models.videossm.transformer import SoftmaxAttention


class TextEncoder(nn.Module):
    """Bidirectional pre-norm transformer. Features of padding are zero, as Wan zeroes those of its T5."""

    def __init__(self, config: TextEncoderConfig, text_len: int, text_dim: int) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, text_dim)
        self.position = nn.Parameter(torch.randn(text_len, text_dim) * 0.02)
        self.layers = nn.ModuleList(TextLayer(text_dim, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(text_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask (1 for a word, 0 for padding), int64 [B, L] each, to features [B, L, text_dim]."""
        length = attention_mask.shape[1]
        visible = (attention_mask != 0)[:, None, None].expand(-1, 1, length, -1)
        x = self.token(input_ids) + self.position
        for layer in self.layers:
            x = layer(x, visible)
        return self.norm(x) * attention_mask[..., None]


class TextLayer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = SoftmaxAttention(heads)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.o = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU("tanh"), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.o(self.attention(query, key, value, visible))
        return x + self.ffn(self.norm2(x))
