"""The inverse of assemble.py: makes of a checkpoint what training starts from, to train it further.

python training/shapes/split.py --autoencoder out/autoencoder.pt --transformer out/transformer.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from videossm.models.videossm.checkpoint import WEIGHTS, load_weights, read_config
from videossm.models.videossm.model import VideoModel


def split(checkpoint: Path, autoencoder: Path, transformer: Path) -> None:
    """Writes the two files; training goes on from the second, its average starting anew."""
    model = VideoModel(read_config(checkpoint))
    load_weights(model, checkpoint)
    torch.save(model.autoencoder.state_dict(), autoencoder)
    parts = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("autoencoder.")}
    parameters = {name: parts[name].clone() for name, _ in model.named_parameters() if name in parts}
    torch.save({"model": parts, "average": parameters, "step": 0}, transformer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS / "shapes.safetensors")
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--transformer", type=Path, required=True)
    arguments = parser.parse_args()
    split(arguments.checkpoint, arguments.autoencoder, arguments.transformer)
