"""Clips of the shapes world as normalised latents and token ids, made once and kept on disk.

Made by `python training/shapes/dataset.py --autoencoder out/autoencoder.pt --out out/clips.pt`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videossm.models.shapes.tokenizer import build_tokenizer
from videossm.models.shapes.vocabulary import BACKGROUNDS, COLOURS, SHAPES
from videossm.models.shapes.world import SPEED, World, random_prompt, render
from videossm.models.videossm.autoencoder import Autoencoder
from videossm.models.videossm.presets import shapes

SWITCH_FRAME = 15  # of a switched clip: the first frame that its prompt describes
SWITCHED = 1 / 3  # share of switched clips


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


def switched_clip(world: World, rng: np.random.Generator, frames: int) -> np.ndarray:
    """`frames` frames of which only those from `SWITCH_FRAME` on show what the prompt says: uint8 [T, H, W, 3].

    Before, the object moves otherwise, is another one, is missing or is half there. So a model learns to obey the
    prompt, not its past: it follows a prompt that changes, and mends a chunk that came out wrong.
    """
    kind = rng.choice(["motion", "object", "missing", "faint"])
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*SPEED) * (rng.random() < 0.8)
    if rng.random() < 0.7:
        angle = round(angle / (np.pi / 2)) * np.pi / 2
    vx, vy = speed * np.cos(angle), speed * np.sin(angle)
    # A `moves *` keeps its velocity across the edges, so the scene can be run backwards from where it has to end.
    prompt = replace(world.prompt, motion="moves left")
    if kind == "object":
        prompt = replace(prompt, colour=str(rng.choice(list(COLOURS))), shape=str(rng.choice(SHAPES)))
    start = ((world.x - vx * SWITCH_FRAME) % world.size, (world.y - vy * SWITCH_FRAME) % world.size)
    wrong = replace(world, prompt=prompt, x=start[0], y=start[1], vx=vx, vy=vy)
    before, after = render(wrong, SWITCH_FRAME), render(world, frames - SWITCH_FRAME)
    if kind in ("missing", "faint"):
        background = np.array(BACKGROUNDS[world.prompt.background or "black"], np.float32)
        visible = 0.0 if kind == "missing" else rng.uniform(0.1, 0.8)
        before = np.round(background + visible * (before - background)).astype(np.uint8)
    return np.concatenate([before, after])


@torch.no_grad()
def make(autoencoder: Path, out: Path, clips: int, frames: int, seed: int) -> None:
    """Writes `clips` encoded clips of `frames` frames: latents fp16 [N, F, C, h, w], ids and masks [N, L].

    `described` [N] is each clip's first frame that its prompt describes: 0, or `SWITCH_FRAME`.
    """
    model = load_autoencoder(autoencoder)
    rng = np.random.default_rng(seed)
    prompts, latents, described = [], [], []
    for _ in range(0, clips, 32):
        drawn = [random_prompt(rng) for _ in range(32)]
        switched = rng.random(32) < SWITCHED
        worlds = [World.sample(prompt, rng) for prompt in drawn]
        video = np.stack(
            [
                switched_clip(world, rng, frames) if late else render(world, frames)
                for world, late in zip(worlds, switched, strict=True)
            ]
        )
        described += (SWITCH_FRAME * switched).tolist()
        pixels = torch.from_numpy(video).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(model.encode(pixels).half())
        prompts += [str(prompt) for prompt in drawn]
    ids, mask = tokenize(prompts, shapes().transformer.text_len)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"latents": torch.cat(latents), "ids": ids, "mask": mask, "described": torch.tensor(described)}, out)


def load(path: Path) -> dict[str, Tensor]:
    """The file that `make` wrote, memory-mapped."""
    return torch.load(path, weights_only=True, mmap=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=18000)
    parser.add_argument("--frames", type=int, default=36, help="of each clip")
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    make(arguments.autoencoder, arguments.out, arguments.clips, arguments.frames, arguments.seed)
