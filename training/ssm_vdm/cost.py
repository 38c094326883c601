"""What length costs: layers over time against temporal attention, and a whole step of 400 frames.

    python training/ssm_vdm/cost.py layers
    python training/ssm_vdm/cost.py step --frames 400

Both export and run on ONNX Runtime's CPU, as plans do. `layers` takes turns between lengths and kinds in one process;
`step` says how much memory the process has ever held.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.export.lowering import lower
from videossm.export.trace import trace
from videossm.models.family import Engine
from videossm.models.ssm_vdm.config import DiffusionConfig, SsmVdmConfig, TemporalConfig, UNetConfig
from videossm.models.ssm_vdm.deployment import deployment
from videossm.models.ssm_vdm.model import random_model
from videossm.models.ssm_vdm.s4d import S4D
from videossm.models.ssm_vdm.temporal import temporal_layer
from videossm.models.ssm_vdm.unet import TemporalResidual
from videossm.runtime.backends import NATIVE_VARIABLE
from videossm.runtime.backends.session import session_options

DIM, PLACES, HEADS = 64, 256, 8  # of a layer
LENGTHS = (64, 256)  # frames
TURNS = 7


class TemporalLayers(nn.Module):
    """The layer of version 20, both ways."""

    def __init__(self, kind: str, frames: int) -> None:
        super().__init__()
        self.frames = frames
        config = TemporalConfig(kind, 20, bidirectional=True, state=16)
        self.layer = TemporalResidual(DIM, temporal_layer(config, DIM))
        for module in self.modules():
            if isinstance(module, S4D):
                module.fix(frames, streamed=False)

    def forward(self, x: Tensor) -> Tensor:
        """[1, F, P, C] to the same shape."""
        return self.layer(x.flatten(0, 1).permute(0, 2, 1)[..., None], self.frames, [])[0]


class TemporalAttention(nn.Module):
    """Every place attends to itself in all frames."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """[1, F, P, C] to the same shape."""
        rows = x[0].transpose(0, 1)  # [P, F, C]
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in self.to_qkv(rows).chunk(3, -1))
        read = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(read.transpose(1, 2).flatten(2)).transpose(0, 1)[None]


def session(engine: Engine, folder: Path, threads: int) -> ort.InferenceSession:
    """`engine` exported and lowered as plans for ONNX Runtime are; with VIDEOSSM_SCANS to its operators."""
    model, path = trace(engine, {}, 23, folder)
    onnx.save(lower(model, "native" if os.environ.get(NATIVE_VARIABLE) else "contrib"), str(path))
    return ort.InferenceSession(str(path), session_options("fp32", threads), providers=["CPUExecutionProvider"])


def layers(folder: Path, threads: int) -> dict[str, object]:
    """Median seconds by kind and length, and how they grow."""
    runs = {}
    for kind in ("s4d", "s6", "attention"):
        for frames in LENGTHS:
            module = TemporalAttention() if kind == "attention" else TemporalLayers(kind, frames)
            shape = 1, frames, PLACES, DIM
            engine = Engine(f"{kind}_{frames}", module.eval(), (torch.empty(shape),), {"x": "sample"}, {"y": "sample"})
            runs[kind, frames] = session(engine, folder, threads), np.random.rand(*shape).astype(np.float32)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for _ in range(TURNS + 1):
        for key, (run, x) in runs.items():
            begun = time.perf_counter()
            run.run(None, {"x": x})
            seconds[key].append(time.perf_counter() - begun)
    median = {key: statistics.median(times[1:]) for key, times in seconds.items()}
    short, long = LENGTHS
    return {
        kind: {
            **{f"seconds of {frames} frames": median[kind, frames] for frames in LENGTHS},
            "growth": median[kind, long] / median[kind, short],
        }
        for kind in ("s4d", "s6", "attention")
    }


def step(folder: Path, threads: int, frames: int) -> dict[str, object]:
    """One step of a clip at the sizes of the public code's smaller models: 32 x 32 pixels, dim 64."""
    unet = UNetConfig(DIM, (1, 2, 4, 8), channels=3, heads=8, temporal=TemporalConfig("s4d", 20, True, 16))
    diffusion = DiffusionConfig(timesteps=256, prediction="noise", sampler="ddim", steps=2)
    config = SsmVdmConfig("public", 32, 32, 8.0, 1, "clip", frames, 1, unet, diffusion)
    engine = next(engine for engine in deployment(random_model(config), "").engines if engine.name == "step")
    run = session(engine, folder, threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    feeds = {i.name: np.full(i.shape, 0.5, np.float32) for i in run.get_inputs()}
    begun = time.perf_counter()
    run.run(None, feeds)
    return {
        "frames": frames,
        "seconds": time.perf_counter() - begun,
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "peak GB before": before / 1e6,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["layers", "step"])
    parser.add_argument("--frames", type=int, default=400, help="of the step")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        done = layers(place, arguments.threads) if arguments.part == "layers" else step(place, 1, arguments.frames)
    print(json.dumps(done, indent=2))
