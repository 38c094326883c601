"""Joins what training left into the checkpoint that ships.

Usage: `python training/shapes/assemble.py --autoencoder out/autoencoder.pt --transformer out/transformer.pt`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dataset import load_autoencoder
from videossm.models.videossm.checkpoint import WEIGHTS, save_checkpoint
from videossm.models.videossm.model import VideoModel
from videossm.models.videossm.presets import shapes


def assemble(autoencoder: Path, transformer: Path, last: bool) -> VideoModel:
    """The whole model; `last` takes the weights of the last iteration instead of their average."""
    model = VideoModel(shapes()).eval()
    saved = torch.load(transformer, weights_only=True)
    weights = saved["model"] if last else {**saved["model"], **saved["average"]}
    for part in ("transformer", "text_encoder"):
        prefix = f"{part}."
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        getattr(model, part).load_state_dict(own)
    model.autoencoder.load_state_dict(load_autoencoder(autoencoder).state_dict())
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--transformer", type=Path, required=True)
    parser.add_argument("--last", action="store_true", help="weights of the last iteration, not their average")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "shapes.safetensors")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(assemble(arguments.autoencoder, arguments.transformer, arguments.last), arguments.out)
