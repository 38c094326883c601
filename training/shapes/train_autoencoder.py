"""Trains the shapes autoencoder: `python training/shapes/train_autoencoder.py --out out/autoencoder.pt --minutes 8`.

Loss: L1 + L2 on pixels, edges weighed up, under noise on the latents so that the decoder forgives the
small errors of the transformer. Ends by measuring the latents' mean and deviation per channel.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videossm.models.shapes.world import World, random_prompt, render
from videossm.models.videossm.autoencoder import Autoencoder
from videossm.models.videossm.presets import shapes

LATENT_NOISE = 0.1  # in units of the latents' own deviation


def clips(rng: np.random.Generator, count: int, frames: int) -> Tensor:
    """`count` random clips as [B, F, 3, H, W] in [-1, 1]."""
    videos = np.stack([render(World.sample(random_prompt(rng), rng), frames) for _ in range(count)])
    return torch.from_numpy(videos).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def train(out: Path, minutes: float, batch: int = 12, frames: int = 6) -> None:
    config = shapes()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = Autoencoder(config.autoencoder, config.transformer.latent_channels)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * min(1.0, 4 * (1 - done)) + 1e-6
        video = clips(rng, batch, frames)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encoder(video)
            scale = latents.detach().std()
            noisy = latents + LATENT_NOISE * scale * torch.randn_like(latents)
            caches = model.decoder.empty_caches(batch, config.latent_height, config.latent_width)
            decoded, _ = model.decoder(noisy, caches)
        error = decoded.float() - video
        # Keeps the latents near unit size; nothing else bounds them under noise relative to their scale.
        loss = error.abs().mean() + 2 * error.square().mean() + 1e-3 * latents.float().square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 100 == 0:
            psnr = 10 * np.log10(4 / error.square().mean().item())
            print(f"{step} {done:.0%} loss {loss.item():.4f} psnr {psnr:.2f} latent std {scale.item():.3f}", flush=True)
    with torch.no_grad():
        latents = model.encoder(clips(rng, 200, 4))
        model.decoder.mean.copy_(latents.mean((0, 1, 3, 4)))
        model.decoder.std.copy_(latents.std((0, 1, 3, 4)))
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out)
    report(model)


@torch.no_grad()
def report(model: Autoencoder) -> None:
    """PSNR on fresh clips, clean and with the noise of training."""
    rng = np.random.default_rng(1)
    video = clips(rng, 32, 12)
    latents = model.encode(video)
    for noise in (0.0, LATENT_NOISE):
        caches = model.decoder.empty_caches(*latents.shape[:1], *latents.shape[-2:])
        decoded, _ = model.decoder(latents + noise * torch.randn_like(latents), caches)
        error = (decoded.clamp(-1, 1) - video).square().mean().item()
        print(f"latent noise {noise}: PSNR {10 * np.log10(4 / error):.2f} dB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    arguments = parser.parse_args()
    train(arguments.out, arguments.minutes)
