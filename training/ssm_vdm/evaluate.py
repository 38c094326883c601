"""Measures a small SSM video diffusion model by the detector of the shapes world.

    python training/ssm_vdm/evaluate.py models/weights/ssm-shapes-clip.safetensors
    python training/ssm_vdm/evaluate.py models/weights/ssm-shapes-stream.safetensors --endurance 12

The detector is made for frames of 64 x 64 pixels, so smaller ones are enlarged with linear interpolation; ground truth
rendered at 32 x 32 and enlarged in this way is recognised in every clip.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scenes import tokenize
from videossm.models.shapes.detector import observe
from videossm.models.shapes.evaluation import (
    adherence_cases,
    endurance_cases,
    evaluate_adherence,
    evaluate_endurance,
)
from videossm.models.shapes.vocabulary import Prompt
from videossm.models.ssm_vdm import rollout
from videossm.models.ssm_vdm.model import SsmVdm, load_checkpoint

SIZE = 64  # pixels across of the frames that the detector knows
BATCH = 18  # videos made at a time
JUMP = 4.0  # pixels of 64: twice the fastest motion

Case = tuple[Prompt, int]


def noise_source(model: SsmVdm, seeds: list[int]) -> rollout.NoiseSource:
    """Every video has its own generator, so it does not depend on those made beside it."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = model.config.sample_shape
    return lambda chunk, step: torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def enlarged(frames: Tensor) -> np.ndarray:
    """uint8 [F, H, W, 3] to [F, SIZE, SIZE, 3]."""
    pixels = frames.permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return pixels.round().byte().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def videos(model: SsmVdm, cases: list[Case], frames: int) -> dict[Case, np.ndarray]:
    """`frames` frames for each prompt and seed, enlarged: uint8 [F, SIZE, SIZE, 3]."""
    made: dict[Case, np.ndarray] = {}
    for begin in range(0, len(cases), BATCH):
        group = cases[begin : begin + BATCH]
        ids, mask = tokenize([str(prompt) for prompt, _ in group], model.config.text_len)
        assert model.prompt is not None
        cond, noise = model.prompt(ids, mask), noise_source(model, [seed for _, seed in group])
        if model.config.streams:
            count = -(-frames // model.config.frames)
            chunks = list(itertools.islice(rollout.stream(model, noise, cond), count))
        else:
            chunks = [rollout.clip(model, noise, cond)]
        shown = rollout.frames(model, torch.cat(chunks, 1))[:, :frames]
        made |= {case: enlarged(video) for case, video in zip(group, shown, strict=True)}
    return made


def continuity(video: np.ndarray, chunk: int) -> tuple[list[float], list[float]]:
    """How far the object moves from frame to frame, in pixels of 64: within chunks, and from chunk to chunk."""
    centres = observe(video).centres
    steps = (np.diff(centres, axis=0) + SIZE / 2) % SIZE - SIZE / 2
    lengths = np.linalg.norm(steps, axis=1)
    border = (np.arange(len(lengths)) + 1) % chunk == 0
    return [list(part[~np.isnan(part)]) for part in (lengths[~border], lengths[border])]  # type: ignore[return-value]


def evaluate(model: SsmVdm, seeds: int, seconds: float, endurance: int) -> dict[str, object]:
    config = model.config
    cases, frames = adherence_cases(seeds), round(seconds * config.fps)
    made = {(str(prompt), seed): video for (prompt, seed), video in videos(model, cases, frames).items()}
    adherence = evaluate_adherence(lambda prompt, seed, _: made[prompt, seed], seeds, seconds)
    formed = [clip.seen["colour"] != "none" and clip.seen["shape"] != "none" for clip in adherence.clips]
    asked = [all(clip.seen[name] == clip.asked[name] for name in ("colour", "shape")) for clip in adherence.clips]
    result: dict[str, object] = {
        "clips": len(cases),
        "frames": frames,
        "one colour and one shape": float(np.mean(formed)),
        "colour and shape as asked": float(np.mean(asked)),
        "frames with an object": float(np.mean([clip.present for clip in adherence.clips])),
        **adherence.accuracies,
    }
    if endurance:
        long = videos(model, endurance_cases(endurance), round(60 * config.fps))
        found = {(str(prompt), seed): video for (prompt, seed), video in long.items()}
        lasting = evaluate_endurance(lambda prompt, seed, _: found[prompt, seed], endurance)
        inside, across = zip(*(continuity(video, config.frames) for video in long.values()), strict=True)
        steps = {"within chunks": np.concatenate(inside), "between chunks": np.concatenate(across)}
        result["last 10 of 60 seconds"] = {
            "videos": endurance,
            "frames with an object": float(
                np.mean([observe(video[-round(10 * config.fps) :]).present.mean() for video in long.values()])
            ),
            "right colour": lasting.colour,
            "right shape": lasting.shape,
            "motion as asked": float(np.mean([clip.seen["motion"] in clip.prompt for clip in lasting.clips])),
        }
        result["pixels of 64 moved a frame"] = {
            name: {"mean": float(part.mean()), f"share above {JUMP:g}": float((part > JUMP).mean())}
            for name, part in steps.items()
        }
    return result


def strip(model: SsmVdm, path: Path, frames: int) -> None:
    """A picture with a row of frames for each of a few prompts."""
    import matplotlib.image

    rows = [np.concatenate(list(video), 1) for video in videos(model, adherence_cases(1)[:12], frames).values()]
    matplotlib.image.imsave(path, np.concatenate(rows, 0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seeds", type=int, default=4, help="clips for each of the 18 colours and shapes")
    parser.add_argument("--seconds", type=float, help="of each clip; by default a clip as trained, 5 of a stream")
    parser.add_argument("--endurance", type=int, default=0, help="videos of 60 seconds, for a stream")
    parser.add_argument("--strip", type=Path, help="write a picture of some clips here instead of measuring")
    arguments = parser.parse_args()
    loaded = load_checkpoint(arguments.checkpoint)
    length = arguments.seconds or (5.0 if loaded.config.streams else loaded.config.frames / loaded.config.fps)
    if not loaded.config.streams:
        loaded.config = replace(loaded.config, frames=round(length * loaded.config.fps))
    if arguments.strip:
        strip(loaded, arguments.strip, round(length * loaded.config.fps))
    else:
        print(json.dumps(evaluate(loaded, arguments.seeds, length, arguments.endurance), indent=2))
