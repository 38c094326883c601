"""Trains a small SSM video diffusion model on the shapes world.

    train=training/ssm_vdm/train.py
    python $train ssm-vdm-shapes --out out/stills.pt --frames 1 --batch 64 --minutes 45 --cool 0.3
    python $train ssm-vdm-shapes --start out/stills.pt --out out/clip.pt --frames 8 --batch 8 --minutes 25
    python $train ssm-vdm-shapes --out out/clip.pt --frames 16 --batch 4 --minutes 55 --cool 0.5

and ssm-vdm-shapes-stream from the same stills, whose parts of a clip then go on with the states of the part before:

    python $train ssm-vdm-shapes-stream --out out/stream.pt --frames 64 --parts 4 --batch 4 --minutes 95 --cool 0.7

Single frames first: a batch holds many scenes, and the spatial layers, which both models share, learn what an object
is. Then clips. Training goes on from --out where it exists. The network predicts the clean video, and its error is
weighed as an error of the velocity (arXiv 2202.00512).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from scenes import batches
from videossm.models.ssm_vdm.diffusion import alpha_bars
from videossm.models.ssm_vdm.model import SsmVdm
from videossm.models.ssm_vdm.presets import PRESETS
from videossm.models.ssm_vdm.s4d import S4DKernel

SIGMA_FLOOR = 0.3  # of the weight 1 / sigma^2
HEAVIEST = 4.0  # weight of a clip
NOISY = 3.0  # how much more often the noisiest level is drawn than each would be evenly
# Of the scans, in place of S4D's 0.001 to 0.1: a state halves within 1.4 to 14 frames.
MEMORY_STEPS = (0.1, 1.0)
WARM_UP = 50  # iterations
SAVE_EVERY_S = 180
LOG_EVERY = 25


def close_branches(model: SsmVdm) -> None:
    """Temporal layers begin as the identity, the network's answer as gray."""
    for layer, _ in model.unet.temporal_layers():
        nn.init.zeros_(layer.get_parameter("fc_out.weight"))
        nn.init.zeros_(layer.get_parameter("fc_out.bias"))
    nn.init.zeros_(model.unet.final_conv.get_parameter("1.weight"))


@torch.no_grad()
def shorten_memories(model: SsmVdm) -> None:
    """Draws the scans' steps anew, so that a state forgets within a training clip and a stream ends up nowhere new.

    The read-out is scaled along: what a scan makes of a single frame stays nearly the same.
    """
    low, high = (math.log(step) for step in MEMORY_STEPS)
    for kernel in model.modules():
        if isinstance(kernel, S4DKernel):
            drawn = torch.rand_like(kernel.log_dt) * (high - low) + low
            kernel.C.mul_((kernel.log_dt - drawn).exp()[:, None, None])
            kernel.log_dt.copy_(drawn)


@torch.no_grad()
def mirror(model: SsmVdm) -> None:
    """The way back in time begins as a copy of the way on, each with half the weight."""
    for layer, _ in model.unet.temporal_layers():
        if layer.bidirectional:
            for name in (layer.kind, "conv"):
                layer.get_submodule(f"{name}_rev").load_state_dict(layer.get_submodule(name).state_dict())
            layer.get_parameter("fc_out.weight").mul_(0.5)


def losses_of(model: SsmVdm, bars: Tensor, x0: Tensor, ids: Tensor, mask: Tensor, parts: int) -> Iterator[Tensor]:
    """Mean weighted squared errors over a batch of clips, each at its own timestep: one of each of `parts` parts.

    A stream's later parts begin with the states that the earlier ones left, as its chunks do.
    """
    # One in each of as many equal parts, which is less noisy than drawing freely, and more of the noisy levels: there
    # an object is placed and the prompt decides, everywhere else the colour and the shape can be seen.
    place = (torch.arange(len(x0)) + torch.rand(len(x0))) / len(x0)
    timestep = (NOISY * place / (1 + (NOISY - 1) * place) * len(bars)).long().clamp(max=len(bars) - 1)
    bar = bars[timestep][:, None, None, None, None]
    noisy = bar.sqrt() * x0 + (1 - bar).sqrt() * torch.randn_like(x0)
    # A small object in a dark colour counts as much as a large bright one: else it is the one that is lost.
    energy = x0.flatten(1).var(1)
    weight = (energy.mean() / energy).clamp(max=HEAVIEST)
    config, states = model.config, None
    if config.streams:
        shapes = model.unet.state_shapes(len(x0), *config.sample_shape[-2:])
        states = [torch.zeros(shape) for shape in shapes]
    assert model.prompt is not None
    for seen, clean in zip(noisy.chunk(parts, 1), x0.chunk(parts, 1), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            predicted, after = model.unet(seen, timestep.float(), model.prompt(ids, mask), states)
        error = (predicted.float() - clean).square().flatten(1).mean(1)
        yield (weight * error / (1 - bar.flatten()).clamp(min=SIGMA_FLOOR**2)).mean()
        states = [state.detach().float() for state in after] if states else None


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    config = PRESETS[arguments.preset]()
    model = SsmVdm(config).train()
    close_branches(model)
    if arguments.start:
        # Without the layers that only a bidirectional model has.
        model.load_state_dict(torch.load(arguments.start, weights_only=True)["average"], strict=False)
        shorten_memories(model)
        mirror(model)
    average = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), arguments.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    step = 0
    if arguments.out.exists():
        saved = torch.load(arguments.out, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average, step = saved["average"], saved["step"]
    model.unet.compile(dynamic=False)
    bars = alpha_bars(config.diffusion.timesteps).float()
    data = batches(config, arguments.batch, arguments.frames, arguments.seed + step)
    begun, saved_at, first, losses = time.monotonic(), time.monotonic(), step, list[float]()
    while (done := (time.monotonic() - begun) / 60 / arguments.minutes) < 1:
        cooling = min(1.0, (1 - done) / arguments.cool) if arguments.cool else 1.0
        for group in optimiser.param_groups:
            group["lr"] = arguments.rate * min(1, (step - first + 1) / WARM_UP) * cooling
        for loss in losses_of(model, bars, *next(data), arguments.parts):
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
            weight = max(arguments.average, 1 / ((step - first) / 5 + 1))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), [p.detach() for p in model.parameters()], weight)
            losses.append(loss.item())
            if step % LOG_EVERY == 0:
                minutes = (time.monotonic() - begun) / 60
                print(f"{step} {minutes:.1f} min loss {sum(losses) / len(losses):.4f}", flush=True)
                losses.clear()
        if time.monotonic() - saved_at > SAVE_EVERY_S:
            save(arguments.out, model, average, optimiser, step)
            saved_at = time.monotonic()
    save(arguments.out, model, average, optimiser, step)


def save(path: Path, model: SsmVdm, average: dict[str, Tensor], optimiser: torch.optim.Optimizer, step: int) -> None:
    """Everything that training goes on from; the file that was there stays whole until the new one is."""
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"model": model.state_dict(), "average": average, "optimiser": optimiser.state_dict(), "step": step}, part
    )
    part.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=["ssm-vdm-shapes", "ssm-vdm-shapes-stream"])
    parser.add_argument("--start", type=Path, help="a training file to take the averaged weights from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, required=True, help="of a clip")
    parser.add_argument("--parts", type=int, default=1, help="of a stream's clip, an iteration each; states go on")
    parser.add_argument("--batch", type=int, required=True, help="clips an iteration")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--cool", type=float, default=0.0, help="share of the time over which the rate falls to 0")
    parser.add_argument("--average", type=float, default=0.005, help="weight of an iteration in the averaged weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
