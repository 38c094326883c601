"""A model of one's own, exported: `videossm-export own_model --family own_model:deployment -o own.plan`, here.

It is a causal video model of Mamba layers over the tokens of all frames, in the order of time and then space. Each
chunk of frames is denoised from the states that the chunks before it left, so a video may be endless. Weights are
random: it shows the way, not pictures. Needs `mamba-ssm`, which may be without CUDA (docs/scans-captured.md).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.models.family import Deployment, Engine, Pass, State, Stream
from videossm.models.scans.capture import captured_scans
from videossm.models.scans.mamba import mamba_chunk, mamba_states

with captured_scans():  # where mamba-ssm can be imported without its CUDA kernels
    from mamba_ssm import Mamba


class MambaVideo(nn.Module):
    """One step of denoising (flow matching, by Euler) of a chunk of F frames of latents [C, h, w]."""

    def __init__(self, channels: int = 4, size: tuple[int, int] = (4, 4), dim: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, dim)
        self.place = nn.Parameter(torch.randn(size[0] * size[1], dim) / 4)
        self.level = nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.layers = nn.ModuleList(Mamba(dim, d_state=8) for _ in range(layers))
        self.velocity = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, channels))

    def first_states(self, batch: int) -> list[Tensor]:
        """Zeros for each layer: its convolution's state [B, E, K-1], its scan's [B, E, N]."""
        return [state for layer in self.layers for state in mamba_states(layer, batch)]

    def forward(self, sample: Tensor, sigma: Tensor, sigma_next: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """sample [B, F, C, h, w] at noise level sigma [1] to the one at sigma_next [1], and the states after it."""
        frames, height, width = sample.shape[1], *sample.shape[3:]
        tokens = self.embed(sample.permute(0, 1, 3, 4, 2).flatten(2, 3)) + self.place  # [B, F, h w, dim]
        hidden = tokens.flatten(1, 2) + self.level(sigma[:, None])
        after: list[Tensor] = []
        for index, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            out, *left = mamba_chunk(layer, norm(hidden), *states[2 * index : 2 * index + 2])
            hidden = hidden + out
            after += left
        velocity = self.velocity(hidden).unflatten(1, (frames, height, width)).permute(0, 1, 4, 2, 3)
        return sample + (sigma_next - sigma) * velocity, *after


class Decode(nn.Module):
    """Latents [B, F, C, h, w], of which the first three channels are colours in -1..1, to uint8 [B, F, H, W, 3]."""

    def __init__(self, scale: int = 8) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, sample: Tensor) -> Tensor:
        colours = sample[:, :, :3].clamp(-1, 1)
        large = F.interpolate(colours.flatten(0, 1), scale_factor=self.scale, mode="nearest")
        pixels = ((large + 1) * 127.5).round().to(torch.uint8)
        return pixels.unflatten(0, colours.shape[:2]).permute(0, 1, 3, 4, 2)


def deployment() -> Deployment:
    """What a plan says of it: chunks of 4 frames of 32x32 pixels, four passes, each with states of its own."""
    torch.manual_seed(0)
    model, levels = MambaVideo().eval(), [1.0, 0.75, 0.5, 0.25, 0.0]
    states = model.first_states(batch=1)
    names = [f"{kind}.{layer}" for layer in range(len(states) // 2) for kind in ("conv", "scan")]
    sample = torch.empty(1, 4, 4, 4, 4)
    step = Engine(
        "step",
        model,
        (sample, torch.ones(1), torch.ones(1), *states),
        inputs={"sample": "sample", "sigma": "pass.sigma", "sigma_next": "pass.sigma_next"}
        | {name: f"state.{name}" for name in names},
        outputs={"sample_next": "sample"} | {f"{name}.next": f"state.{name}" for name in names},
    )
    decoder = Engine("decoder", Decode(), (sample,), {"latents": "clean"}, {"frames": "frames"}, when="after")
    return Deployment(
        name="own-model",
        stream=Stream(batch=1, fps=8, height=32, width=32, first_frames=4, later_frames=4),
        engines=[step, decoder],
        states={name: State("carry", per_pass=True) for name in names},
        passes=[Pass("step", {"sigma": a, "sigma_next": b}) for a, b in pairwise(levels)],
    )
