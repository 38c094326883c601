"""A family outside the repository: a video model on linear attention, whose states sum up all chunks before.

    S += sum k^T v;  z += sum k;  out = q S / (q z)         q, k: elu(..) + 1, over the tokens of a chunk and all before

No window, no prompt: once a chunk is denoised, its clean tokens go through the model again, and are added to S and z.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.models.family import Deployment, Engine, Pass, State, Stream

FRAMES, CHANNELS, HEIGHT, WIDTH, SCALE = 3, 4, 4, 6, 8  # of a chunk's latents; SCALE pixels a latent
DIM, HEADS = 32, 2
LEVELS = (1.0, 0.6, 0.0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.ffn = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens [B, N, D] to queries, keys and values [B, H, N, d]."""
        q, k, v = self.qkv(self.norm(tokens)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return F.elu(q) + 1, F.elu(k) + 1, v

    def forward(self, tokens: Tensor, matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens [B, N, D] and the states before them, S [B, H, d, d] and z [B, H, d], to the same after the block."""
        q, k, v = self.heads(tokens)
        matrix, vector = matrix + k.mT @ v, vector + k.sum(2)
        attended = (q @ matrix) / (q @ vector[..., None])
        tokens = tokens + self.out(attended.transpose(1, 2).flatten(2))
        return tokens + self.ffn(tokens), matrix, vector


class LinearVideo(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed, self.velocity = nn.Linear(CHANNELS, DIM), nn.Linear(DIM, CHANNELS)
        self.level = nn.Sequential(nn.Linear(1, DIM), nn.SiLU(), nn.Linear(DIM, DIM))
        self.place = nn.Parameter(torch.randn(FRAMES * HEIGHT * WIDTH, DIM) / 4)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))

    def tokens(self, sample: Tensor, sigma: Tensor) -> Tensor:
        """sample [B, F, C, h, w] at the noise level sigma [1] to [B, F h w, D]."""
        return self.embed(sample.permute(0, 1, 3, 4, 2).flatten(1, 3)) + self.place + self.level(sigma[:, None])

    def forward(self, sample: Tensor, sigma: Tensor, sigma_next: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        tokens, after = self.tokens(sample, sigma), []
        for block, matrix, vector in zip(self.blocks, states[::2], states[1::2], strict=True):
            tokens, *summed = block(tokens, matrix, vector)
            after += summed
        velocity = self.velocity(tokens).unflatten(1, (FRAMES, HEIGHT, WIDTH)).permute(0, 1, 4, 2, 3)
        return sample + (sigma_next - sigma) * velocity, *after


class Pixels(nn.Module):
    def forward(self, sample: Tensor) -> Tensor:
        """sample [B, F, C, h, w], whose first channels are colours, to uint8 [B, F, H, W, 3]."""
        colours = sample[:, :, :3].flatten(0, 1).repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
        return ((colours.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1)[None].to(torch.uint8)


def load(source: str, options: Mapping[str, Any], random_weights: bool) -> Deployment:
    """`source`: the seed of its weights."""
    torch.manual_seed(int(source))
    model = LinearVideo(layers=options.get("layers", 2)).eval()
    names = [f"{index}.{kind}" for index in range(len(model.blocks)) for kind in ("S", "z")]
    size = DIM // HEADS
    states = [torch.zeros(1, HEADS, size, size), torch.zeros(1, HEADS, size)] * len(model.blocks)
    sample = torch.zeros(1, FRAMES, CHANNELS, HEIGHT, WIDTH)
    inputs = {"x": "sample", "t": "pass.t", "t_next": "pass.t_next"} | {name: f"state.{name}" for name in names}
    outputs = {"x_next": "sample"} | {f"{name}_next": f"state.{name}" for name in names}
    levels = [*pairwise(LEVELS), (0.0, 0.0)]
    return Deployment(
        name="linear-video",
        stream=Stream(1, 8.0, HEIGHT * SCALE, WIDTH * SCALE, FRAMES, FRAMES),
        engines=[
            Engine("denoiser", model, (sample, torch.ones(1), torch.zeros(1), *states), inputs, outputs),
            Engine("pixels", Pixels(), (sample,), {"x": "clean"}, {"video": "frames"}, when="after"),
        ],
        passes=[Pass("denoiser", {"t": t, "t_next": after}, commits=t == 0) for t, after in levels],
        states={name: State("carry") for name in names},
        config={"layers": len(model.blocks)},
    )
