"""The engines of a plan as PyTorch modules: what export traces and what the reference rollout runs.

Their inputs and outputs are the step's contract: state in, state out, static shapes, and one graph for
the first chunk and the ten-thousandth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videossm.models.scans.operators import gated_delta_scan
from videossm.models.videossm.autoencoder import Decoder, to_uint8
from videossm.models.videossm.config import ModelConfig
from videossm.models.videossm.in_place import IN_PLACE_SIDES, own_places, with_own, with_room
from videossm.models.videossm.rope import apply_rope
from videossm.models.videossm.text_encoder import TextEncoder
from videossm.models.videossm.transformer import Positions, Seen, Transformer

SIGMA_MIN = 1e-4  # below it a latent counts as clean: guards the division that turns x0 into a flow


class PromptEncoder(nn.Module):
    """Token ids to the prompt state: what every step reads and only a change of prompt changes."""

    def __init__(self, text_encoder: TextEncoder, transformer: Transformer) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """int64 [B, L] each to key and value [B, L, D] of every block, in turn."""
        state = self.transformer.prompt_state(self.text_encoder(input_ids, attention_mask))
        return [tensor for pair in state for tensor in pair]


class TurnKeys(nn.Module):
    """The window's keys under the rotary embedding of where they stand now; the same for all passes of a chunk."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        # Without the transformer itself, whose weights would be traced along.
        self.heads, self.rope = transformer.config.heads, transformer.rope

    def forward(self, slot_position: Tensor, keys: list[Tensor]) -> list[Tensor]:
        """Positions of the slots, int64 [window_frames], and each block's keys [B, P, D], to keys [B, P, D]."""
        # Position 0 is as good as any for an empty slot: the mask hides its tokens.
        rotation = self.rope(slot_position.clamp(min=0))
        return [apply_rope(key, rotation, self.heads) for key in keys]


class LayWindow(nn.Module):
    """`TurnKeys` where passes write in place: keys turned, and values, with room for the chunk's own behind them."""

    def __init__(self, transformer: Transformer, config: ModelConfig) -> None:
        super().__init__()
        self.turn_keys, self.tokens = TurnKeys(transformer), config.chunk_tokens

    def forward(self, slot_position: Tensor, past: list[Tensor]) -> list[Tensor]:
        """Positions of the slots, and key, value [B, P, D] of each block in turn, to key, value [B, 1, P + T, D]."""
        window = list(past)
        window[::2] = self.turn_keys(slot_position, past[::2])
        return [with_room(tensor, self.tokens) for tensor in window]


class Step(nn.Module):
    """One denoising step of one chunk, or, at sigma = sigma_next = 0, the pass that commits a clean chunk."""

    places: Tensor  # of a chunk behind a full window, where it is written in place

    def __init__(self, transformer: Transformer, config: ModelConfig) -> None:
        super().__init__()
        self.transformer, self.config = transformer, config
        places = own_places(config.batch, config.window_tokens, config.chunk_tokens)
        self.register_buffer("places", places, persistent=False)

    def forward(
        self,
        latent: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        slot_position: Tensor,
        frame_position: Tensor,
        prompt: list[Tensor],
        window: list[Tensor],
        memory: list[Tensor],
        rho: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The latent at sigma_next, the chunk's keys, values and gates, and the window where it is written in place.

        Args:
            latent: [B, F, C, h, w] at noise level `sigma` [1]; `noise`: fresh noise, `renoise` sampler only.
            slot_position: position of each frame slot of the window, int64 [window_frames], -1 where empty.
            frame_position: positions of the chunk's frames, int64 [F].
            prompt: key, value [B, L, D] of each block in turn.
            window: key, value of each block in turn, [B, P, D] with keys as `TurnKeys` leaves them, or, to be written
                in place, [B, 1, P + T, D] as `LayWindow` or another pass does.
            memory: [B, H, d, d] fp32 of each block; empty without a memory.
            rho: share of evicted frames [1], clamped; None without a memory.

        Returns:
            latent_next, and for each block in turn key, value [B, T, D] and, with a memory, decay and
            beta [B, T, H]. They are the chunk's state when the step was the commit pass. In the end `window` with the
            chunk's keys, turned, and values in the last T places; nothing if it has no room for them.
        """
        if bool(memory) != self.config.transformer.memory:
            raise ValueError(
                f"memory: got {len(memory)} tensors, expected one a block exactly if the model has memories"
            )
        model = self.transformer
        time, modulation = model.time_state(sigma)
        x = model.embed(latent)
        positions = self._positions(slot_position, frame_position)
        present: list[Tensor] = []
        written: list[Tensor] = []
        for i, block in enumerate(model.blocks):
            projection = block.project(x, modulation)
            own = apply_rope(projection.key, positions.rotation, block.heads), projection.value
            key, value = (with_own(window[2 * i + kind], own[kind], self.places) for kind in range(2))
            written += [tensor for tensor in (key, value) if tensor.dim() == IN_PLACE_SIDES]
            seen = Seen(key.flatten(1, -2), value.flatten(1, -2), memory[i] if memory else None)
            x = block(x, modulation, projection, seen, (prompt[2 * i], prompt[2 * i + 1]), positions, rho)
            present += [projection.key, projection.value]
            if projection.decay is not None and projection.beta is not None:
                present += [projection.decay, projection.beta]
        prediction = model.unembed(x, time)
        return self._advance(latent, prediction, sigma, sigma_next, noise), present, written

    def _positions(self, slot_position: Tensor, frame_position: Tensor) -> Positions:
        model = self.transformer
        filled = (slot_position >= 0).repeat_interleave(self.config.frame_tokens)
        tokens = self.config.chunk_tokens
        visible = torch.cat([filled, filled.new_ones(tokens)])
        # One row a query, although all are alike: ONNX Runtime's Attention takes no mask that broadcasts there.
        visible = visible.expand(1, 1, tokens, -1)
        return Positions(model.rope(frame_position), visible)

    def _advance(
        self, latent: Tensor, prediction: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor | None
    ) -> Tensor:
        """The sampler's arithmetic, so that the host moves no latents between steps."""
        if self.config.transformer.prediction == "x0":
            flow = (latent - prediction) / sigma.clamp(min=SIGMA_MIN)
        else:
            flow = prediction
        if noise is None:
            return latent + (sigma_next - sigma) * flow
        return (1 - sigma_next) * (latent - sigma * flow) + sigma_next * noise


class MemoryUpdate(nn.Module):
    """Takes the chunk that leaves the window into every block's memory, by the gated delta rule."""

    def forward(self, evicted: list[Tensor], memory: list[Tensor]) -> list[Tensor]:
        """Key, value [B, T, D], decay, beta [B, T, H] of each block in turn; memories [B, H, d, d] to new ones."""
        updated = []
        for block, state in enumerate(memory):
            key, value, decay, beta = evicted[4 * block : 4 * block + 4]
            key, value = (x.float().unflatten(-1, (state.shape[1], -1)) for x in (key, value))
            updated.append(gated_delta_scan(key, key, value, decay, beta, state, 1.0, normalize_key=True)[1])
        return updated


class Decode(nn.Module):
    """Clean latents to pixels, with the decoder's caches in and out.

    `first`: for the first chunk of a video, whose first latent is its first frame alone.
    """

    def __init__(self, decoder: Decoder, first: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.dropped = decoder.config.time_scale - 1 if first else 0

    def forward(self, latents: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """[B, F, C, h, w] to frames [B, T, H, W, 3] uint8."""
        frames, caches = self.decoder(latents, caches)
        return to_uint8(frames[:, self.dropped :]), caches
