"""The two kinds of scan over frames behind one face: frames in, frames out, the state given and returned.

Shapes: a video's features are [B, F, P, E]: frames, places (rows x columns), channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.models.scans.operators import selective_scan
from videossm.models.scans.selective_scan import selective_scan_parallel
from videossm.models.ssm_vdm.s4d import S4D

STEP_RANGE = (1e-3, 0.1)  # of a new selective scan, drawn evenly in the logarithm
STEP_RANK = 16  # channels for each column of the step's low-rank projection; Mamba's `auto`


class S4DScan(S4D):
    """S4D, place by place; with `gated`, GELU and a gated linear layer follow."""

    def __init__(self, channels: int, state: int, gated: bool) -> None:
        super().__init__(channels, state)
        self.output_linear = gated_linear(channels) if gated else None

    def scan(self, x: Tensor, state: Tensor | None, reverse: bool = False) -> tuple[Tensor, Tensor | None]:
        """x [B, F, P, E] to the same shape; state [B, E, P, N] or None; `reverse` begins at the last frame."""
        y, state = self(x.permute(0, 3, 2, 1), state, reverse)
        y = y.permute(0, 3, 2, 1)
        return (y if self.output_linear is None else self.output_linear(F.gelu(y))), state


class S6Scan(nn.Module):
    """Mamba's selective scan (arXiv 2312.00752), place by place; with `gated`, SiLU and a gated linear layer follow."""

    def __init__(self, channels: int, state: int, gated: bool) -> None:
        super().__init__()
        self.channels, self.state = channels, state
        self.rank = math.ceil(channels / STEP_RANK)
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.x_proj = nn.Linear(channels, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, channels)
        self.output_linear = gated_linear(channels) if gated else None
        low, high = (math.log(x) for x in STEP_RANGE)
        step = (torch.rand(channels) * (high - low) + low).exp()
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + (-torch.expm1(-step)).log())  # whose softplus is `step`
            self.dt_proj.weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)

    def state_shape(self, batch: int, places: int) -> tuple[int, ...]:
        """Of the state of so many sequences."""
        return batch, places, self.channels, self.state

    def scan(self, x: Tensor, state: Tensor | None, reverse: bool = False) -> tuple[Tensor, Tensor | None]:
        """x [B, F, P, E] to the same shape; state [B, P, E, N] or None; `reverse` begins at the last frame."""
        if reverse:
            x = x.flip(1)
        batch, places = x.shape[0], x.shape[2]
        step, write, read = self.x_proj(x).split([self.rank, self.state, self.state], -1)
        step = F.linear(step, self.dt_proj.weight)
        sequences = (y.permute(0, 2, 3, 1).flatten(0, 1).contiguous() for y in (x, step, write, read))
        u, delta, B, C = sequences
        shape = self.state_shape(batch, places)
        begun = (u.new_zeros(shape, dtype=torch.float32) if state is None else state).flatten(0, 1)
        # The operator, which an exported graph keeps as one node, has no gradient.
        run = selective_scan_parallel if self.training else selective_scan
        y, after = run(u, delta, -self.A_log.exp(), B, C, begun, self.D, None, self.dt_proj.bias, True)
        y = y.unflatten(0, (batch, places)).permute(0, 3, 1, 2)
        if self.output_linear is not None:
            y = self.output_linear(F.silu(y))
        return (y.flip(1) if reverse else y), (None if state is None else after.unflatten(0, (batch, places)))


def gated_linear(channels: int) -> nn.Sequential:
    """A linear layer to twice the width, one half gating the other."""
    return nn.Sequential(nn.Linear(channels, 2 * channels), nn.GLU(-1))


SCANS: dict[str, type[S4DScan] | type[S6Scan]] = {"s4d": S4DScan, "s6": S6Scan}
