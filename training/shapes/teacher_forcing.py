"""All chunks of a clip in one pass: each chunk's noisy copies see the clean chunks before them.

Chunks are folded into the batch. Copy 0 of every chunk is the clean one, at sigma 0, whose keys,
values and gates are what later chunks see, exactly as the commit pass leaves them at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videossm.models.scans.gated_delta import gated_delta_chunked
from videossm.models.videossm.config import WindowConfig
from videossm.models.videossm.memory import RHO_MIN
from videossm.models.videossm.rope import Rotation, apply_rope
from videossm.models.videossm.transformer import Positions, Projection, Seen, Transformer


class Layout:
    """Which past chunks each chunk of a clip sees, and at which positions."""

    def __init__(self, window: WindowConfig, chunks: int) -> None:
        frames = window.chunk_frames
        sink, keep = window.sink_frames // frames, window.window_frames // frames
        self.chunks, self.frames, self.sink, self.keep = chunks, frames, sink, keep
        visible_chunks = [
            list(range(i)) if i <= keep else [*range(sink), *range(i - keep + sink, i)] for i in range(chunks)
        ]
        slots = min(keep, chunks - 1)
        self.index = torch.tensor([seen + [0] * (slots - len(seen)) for seen in visible_chunks]).reshape(chunks, slots)
        filled = torch.tensor([[slot < len(seen) for slot in range(slots)] for seen in visible_chunks])
        self.filled = filled.reshape(chunks, slots).repeat_interleave(frames, 1)  # [chunks, slots * frames]
        self.past_position = torch.arange(slots * frames)
        past_frames = torch.tensor([len(seen) * frames for seen in visible_chunks])
        self.chunk_position = past_frames[:, None] + torch.arange(frames)
        self.evicted = [max(0, i - keep) for i in range(chunks)]  # chunks in the memory when chunk i is made


def memory_states(projection: Projection, layout: Layout, batch: int) -> Tensor:
    """The memory that each chunk reads: fp32 [B * chunks, H, d, d], from the clean copies' projection."""
    assert projection.decay is not None and projection.beta is not None
    heads = projection.decay.shape[-1]
    key, value = (x.unflatten(-1, (heads, -1)) for x in (projection.key, projection.value))
    dim = key.shape[-1]
    state = key.new_zeros((batch, heads, dim, dim), dtype=torch.float32)
    states, done = [], 0
    inputs = (key, value, projection.decay, projection.beta)
    parts = [x.float().unflatten(0, (batch, -1)) for x in inputs]
    for evicted in layout.evicted:
        if evicted > done:
            key, value, decay, beta = (part[:, layout.sink + done] for part in parts)
            key = torch.nn.functional.normalize(key, dim=-1)
            _, state = gated_delta_chunked(key, key, value, decay, beta, state, 1.0)
            done = evicted
        states.append(state)
    return torch.stack(states, 1).flatten(0, 1)


def predict(
    model: Transformer, layout: Layout, clean: Tensor, noisy: Tensor, sigma: Tensor, text: Tensor, rho: Tensor
) -> Tensor:
    """The head's prediction for the noisy copies.

    Args:
        clean: context latents [B, K, F, C, h, w].
        noisy: [n, B, K, F, C, h, w] at noise levels `sigma` [n, B, K].
        text: text features [B, L, text_dim].
        rho: share of evicted frames [B, K].

    Returns:
        [n, B, K, F, C, h, w].
    """
    copies, batch, chunks = sigma.shape
    rows = batch * chunks
    latents = torch.cat([clean[None], noisy]).flatten(0, 2)
    time, modulation = model.time_state(torch.cat([torch.zeros_like(sigma[:1]), sigma]).flatten())
    x = model.embed(latents)
    tokens = len(model.rope.space_cos)
    folded = batch * chunks * (copies + 1)
    chunk_rotation = Rotation(*(part.repeat(batch * (copies + 1), 1, 1) for part in model.rope(layout.chunk_position)))
    past_rotation = Rotation(*(part.expand(folded, -1, -1) for part in model.rope(layout.past_position)))
    filled = layout.filled.repeat_interleave(tokens, 1)
    visible = torch.cat([filled, filled.new_ones(chunks, x.shape[1])], 1).repeat(batch * (copies + 1), 1)
    positions = Positions(chunk_rotation, visible[:, None, None])
    prompts = model.prompt_state(text)
    rho = rho.flatten().clamp(RHO_MIN, 1).repeat(copies + 1)
    for block, prompt in zip(model.blocks, prompts, strict=True):
        projection = block.project(x, modulation)
        context = Projection(*(part[:rows] for part in vars(projection).values()))
        key, value = (
            part.unflatten(0, (batch, chunks))[:, layout.index].flatten(2, 3).flatten(0, 1).repeat(copies + 1, 1, 1)
            for part in (context.key, context.value)
        )
        own_key = apply_rope(projection.key, chunk_rotation, block.heads)
        key = torch.cat([apply_rope(key, past_rotation, block.heads), own_key], 1)
        value = torch.cat([value, projection.value], 1)
        memory = memory_states(context, layout, batch).repeat(copies + 1, 1, 1, 1)
        prompt_rows = tuple(p.repeat_interleave(chunks, 0).repeat(copies + 1, 1, 1) for p in prompt)
        x = block(x, modulation, projection, Seen(key, value, memory), prompt_rows, positions, rho)
    return model.unembed(x[rows:], time[rows:]).unflatten(0, (copies, batch, chunks))


def predict_first(model: Transformer, layout: Layout, noisy: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """The prediction for first chunks [B, F, C, h, w] at `sigma` [B]: no past, no memory."""
    time, modulation = model.time_state(sigma)
    x = model.embed(noisy)
    tokens = x.shape[1]
    rotation = model.rope(layout.chunk_position[0])
    positions = Positions(rotation, torch.ones(1, 1, 1, tokens, dtype=torch.bool))
    for block, prompt in zip(model.blocks, model.prompt_state(text), strict=True):
        projection = block.project(x, modulation)
        seen = Seen(apply_rope(projection.key, rotation, block.heads), projection.value, None)
        x = block(x, modulation, projection, seen, prompt, positions, None)
    return model.unembed(x, time)
