"""Measures a small SSM video diffusion model, in PyTorch, by the detector of the shapes world.

    python training/ssm_vdm/evaluate.py models/weights/ssm-vdm-shapes.safetensors
    python training/ssm_vdm/evaluate.py models/weights/ssm-vdm-shapes-stream.safetensors

It prints one line a figure, those that `videossm-compare --report full` prints of a plan.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scenes import tokenize
from videossm.models.family import NoiseSource, Video
from videossm.models.ssm_vdm import rollout
from videossm.models.ssm_vdm.family import FAMILY
from videossm.models.ssm_vdm.figures import ObjectEvaluation
from videossm.models.ssm_vdm.model import SsmVdm, load_checkpoint

BATCH = 16  # videos made at a time
STRIP = 12  # videos shown


def noise_source(model: SsmVdm, seeds: list[int]) -> NoiseSource:
    """Every video has its own generator, so it does not depend on those made beside it."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = model.config.sample_shape[1:]
    return lambda chunk, draw: torch.stack([torch.randn(shape, generator=generator) for generator in generators])


@torch.no_grad()
def videos(model: SsmVdm, wanted: Sequence[Video]) -> dict[Video, np.ndarray]:
    """The frames [T, H, W, 3] of each; those made together are equally long."""
    made: dict[Video, np.ndarray] = {}
    config = model.config
    for seconds, same in itertools.groupby(wanted, lambda video: video.seconds):
        frames, together = round(seconds * config.fps), list(same)
        for group in (together[i : i + BATCH] for i in range(0, len(together), BATCH)):
            ids, mask = tokenize([video.prompt for video in group], config.text_len)
            assert model.prompt is not None
            noise = noise_source(model, [video.seed for video in group])
            chunks = rollout.samples(model, noise, model.prompt(ids, mask))
            parts = [rollout.frames(model, chunk) for chunk in itertools.islice(chunks, -(-frames // config.frames))]
            made |= {video: shown.numpy()[:frames] for video, shown in zip(group, torch.cat(parts, 1), strict=True)}
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--frames", type=int, help="of a clip; by default as trained")
    parser.add_argument("--strip", type=Path, help="write a picture of some short videos here instead of measuring")
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.checkpoint)
    evaluation = FAMILY.evaluation(model.config.name)
    if arguments.frames:
        model.config = replace(model.config, frames=arguments.frames)
        evaluation = ObjectEvaluation(arguments.frames / model.config.fps)
    assert evaluation is not None, "a model of the shapes world"
    wanted = evaluation.videos()
    if arguments.strip:
        import matplotlib.image

        rows = [np.concatenate(list(video[::2]), 1) for video in videos(model, wanted[:STRIP]).values()]
        matplotlib.image.imsave(arguments.strip, np.concatenate(rows, 0))
    else:
        for figure in evaluation.figures(videos(model, wanted), model.config.fps):
            print(f"{figure.at}: {figure.what}: {figure.percent:.1f}% of {figure.videos}")
