"""The decoder's caches: chunk by chunk is the whole video at once."""

from __future__ import annotations

import pytest
import torch

from videossm.models.videossm.autoencoder import Autoencoder, to_uint8
from videossm.models.videossm.config import AutoencoderConfig


@pytest.fixture
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(width=8, depth=2), latent_channels=4).eval()


@torch.no_grad()
@pytest.mark.parametrize("split", [1, 2, 3, 5])
def test_decoding_in_pieces_equals_decoding_at_once(autoencoder: Autoencoder, split: int) -> None:
    decoder = autoencoder.decoder
    latents = torch.randn(2, 7, 4, 3, 5)
    whole, last = decoder(latents, decoder.empty_caches(2, 3, 5))
    caches, pieces = decoder.empty_caches(2, 3, 5), []
    for piece in latents.split(split, 1):
        frames, caches = decoder(piece, caches)
        pieces.append(frames)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(caches, last)


@torch.no_grad()
def test_decoder_is_causal(autoencoder: Autoencoder) -> None:
    decoder = autoencoder.decoder
    latents = torch.randn(1, 6, 4, 3, 3)
    changed = latents.clone()
    changed[:, 4:] += 1
    before, after = (decoder(x, decoder.empty_caches(1, 3, 3))[0] for x in (latents, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4], atol=0, rtol=0)
    assert (before[:, 4:] - after[:, 4:]).abs().min(dim=-1).values.max() > 0


@torch.no_grad()
def test_frames_of_a_latent_follow_each_other() -> None:
    """With `time_scale` 3 the channels of the last layer are three frames in turn."""
    decoder = Autoencoder(AutoencoderConfig(width=8, depth=1, time_scale=3), latent_channels=4).decoder.eval()
    latents, caches = torch.randn(2, 4, 4, 3, 5), decoder.empty_caches(2, 3, 5)
    frames, _ = decoder(latents, caches)
    assert frames.shape[:3] == (2, 12, 3)
    hidden, _ = decoder.stages[0](decoder.inp(latents.flatten(0, 1)).unflatten(0, (2, 4)), caches[0])
    pixels = torch.nn.functional.pixel_shuffle(
        decoder.out(torch.nn.functional.silu(hidden[:, 1])), decoder.config.scale
    )
    for place in range(3):
        torch.testing.assert_close(frames[:, 3 + place], pixels[:, 3 * place : 3 * place + 3])


@torch.no_grad()
def test_shapes_and_statistics(autoencoder: Autoencoder) -> None:
    autoencoder.decoder.mean.fill_(0.5)
    autoencoder.decoder.std.fill_(2.0)
    frames = torch.rand(2, 3, 3, 16, 24) * 2 - 1
    latents = autoencoder.encode(frames)
    assert latents.shape == (2, 3, 4, 2, 3)
    torch.testing.assert_close(latents * 2 + 0.5, autoencoder.encoder(frames))


def test_pixels_are_rounded_and_clipped() -> None:
    values = torch.tensor([-1.5, -1.0, 0.0, 1.0, 7.0]).reshape(1, 5, 1, 1, 1).expand(1, 5, 3, 2, 2)
    pixels = to_uint8(values)
    assert pixels.shape == (1, 5, 2, 2, 3)
    assert pixels[0, :, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
