"""Clips of the shapes world as normalised latents and token ids, made once and kept on disk.

Made by `python training/shapes/dataset.py --autoencoder out/autoencoder.pt --out out/clips.pt`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videossm.models.autoencoder import Autoencoder
from videossm.models.presets import shapes
from videossm.models.shapes.tokenizer import build_tokenizer
from videossm.models.shapes.world import World, random_prompt, render


def tokenize(prompts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [B, length] each."""
    tokenizer = build_tokenizer()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=length)
    encoded = tokenizer.encode_batch(prompts)
    return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])


def load_autoencoder(path: Path) -> Autoencoder:
    config = shapes()
    model = Autoencoder(config.autoencoder, config.transformer.latent_channels)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


@torch.no_grad()
def make(autoencoder: Path, out: Path, clips: int, frames: int, seed: int) -> None:
    """Writes `clips` encoded clips of `frames` frames: latents fp16 [N, F, C, h, w], ids and masks [N, L]."""
    model = load_autoencoder(autoencoder)
    rng = np.random.default_rng(seed)
    prompts, latents = [], []
    for _ in range(0, clips, 32):
        drawn = [random_prompt(rng) for _ in range(32)]
        video = np.stack([render(World.sample(prompt, rng), frames) for prompt in drawn])
        pixels = torch.from_numpy(video).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(model.encode(pixels).half())
        prompts += [str(prompt) for prompt in drawn]
    ids, mask = tokenize(prompts, shapes().transformer.text_len)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"latents": torch.cat(latents), "ids": ids, "mask": mask}, out)


def load(path: Path) -> dict[str, Tensor]:
    """The file that `make` wrote, memory-mapped."""
    return torch.load(path, weights_only=True, mmap=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=12000)
    parser.add_argument("--frames", type=int, default=36, help="of each clip")
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    make(arguments.autoencoder, arguments.out, arguments.clips, arguments.frames, arguments.seed)
