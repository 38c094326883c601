"""The temporal layers: a scan over frames and what each version wraps around it.

Shapes: x is [B, F, P, C]: frames, places (rows x columns), channels. States are a list: nothing for a clip, else what
`state_shapes` says, as it was after the frames before; a layer returns those after its frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.models.ssm_vdm.config import CONVOLUTION_FRAMES, TemporalConfig
from videossm.models.ssm_vdm.scans import SCANS

EXPAND = 2  # version 20: channels of the scan for each of the layer's
SHORTCUT = 3  # version 10 around S4D: width of the gate for each channel


class TemporalLayer(nn.Module):
    """One or two scans of `channels` channels; what a version does with them is in its own class."""

    state_names: tuple[str, ...] = ("scan",)  # what a stream carries

    def __init__(self, config: TemporalConfig, channels: int, gated: bool = False) -> None:
        super().__init__()
        self.kind, self.bidirectional = config.kind, config.bidirectional
        # The scans' names are a checkpoint's keys: s4d and s4d_rev, or s6 and s6_rev.
        for name in (self.kind, f"{self.kind}_rev")[: 1 + self.bidirectional]:
            self.add_module(name, SCANS[config.kind](channels, config.state, gated))

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """x to the same shape, and the states after it."""
        raise NotImplementedError

    def state_shapes(self, batch: int, places: int) -> list[tuple[int, ...]]:
        """Of the states of `state_names`."""
        return [getattr(self, self.kind).state_shape(batch, places)]

    def onward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The scan from the first frame on; `states` holds its state or nothing."""
        y, state = getattr(self, self.kind).scan(x, states[0] if states else None)
        return y, [] if state is None else [state]

    def backward_in_time(self, x: Tensor) -> Tensor:
        """The scan from the last frame to the first."""
        return getattr(self, f"{self.kind}_rev").scan(x, None, reverse=True)[0]


class ConcatMlp(TemporalLayer):
    """Version 1: both scans side by side, GELU, linear, GELU, linear."""

    def __init__(self, config: TemporalConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.fc1 = nn.Linear(dim * (1 + self.bidirectional), config.linear_dim)
        self.fc2 = nn.Linear(config.linear_dim, dim)

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = self.onward(x, states)
        if self.bidirectional:
            y = torch.cat([y, self.backward_in_time(x)], -1)
        return self.fc2(F.gelu(self.fc1(F.gelu(y)))), states


class GatedSum(TemporalLayer):
    """Version 2: the scans, each with a gated linear layer, added."""

    def __init__(self, config: TemporalConfig, dim: int) -> None:
        super().__init__(config, dim, gated=True)

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = self.onward(x, states)
        return (y + self.backward_in_time(x) if self.bidirectional else y), states


class GatedSumMlp(GatedSum):
    """Version 8 of the paper's first code: version 2, then linear, GELU, linear."""

    def __init__(self, config: TemporalConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.fc1 = nn.Linear(dim, config.linear_dim)
        self.fc2 = nn.Linear(config.linear_dim, dim)

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = super().forward(x, states)
        return self.fc2(F.gelu(self.fc1(y))), states


class BiGS(TemporalLayer):
    """Version 10: the scans multiplied, gated by a shortcut (arXiv 2212.10544)."""

    def __init__(self, config: TemporalConfig, dim: int) -> None:
        super().__init__(config, dim)
        wide = config.linear_dim or SHORTCUT * dim
        self.fc_shortcut, self.fc_out = nn.Linear(dim, wide), nn.Linear(wide, dim)
        self.fc1, self.fc2, self.fc3 = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, wide)
        if self.bidirectional:
            self.fc_rev1, self.fc_rev2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, states = self.onward(F.gelu(self.fc1(x)), states)
        y = self.fc2(y)
        if self.bidirectional:
            y = y * self.fc_rev2(self.backward_in_time(F.gelu(self.fc_rev1(x))))
        return self.fc_out(F.gelu(self.fc_shortcut(x)) * F.gelu(self.fc3(y))), states


class Vim(TemporalLayer):
    """Version 20: Mamba's block, with a second convolution and scan for the way back (arXiv 2401.09417)."""

    state_names = ("convolution", "scan")

    def __init__(self, config: TemporalConfig, dim: int) -> None:
        self.inner = EXPAND * dim
        super().__init__(config, self.inner)
        self.fc_init = nn.Linear(dim, 2 * self.inner)
        self.conv = nn.Conv1d(self.inner, self.inner, CONVOLUTION_FRAMES, groups=self.inner)
        if self.bidirectional:
            self.conv_rev = nn.Conv1d(self.inner, self.inner, CONVOLUTION_FRAMES, groups=self.inner)
        self.fc_out = nn.Linear(self.inner, dim)

    def state_shapes(self, batch: int, places: int) -> list[tuple[int, ...]]:
        return [(batch, CONVOLUTION_FRAMES - 1, places, self.inner), *super().state_shapes(batch, places)]

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, gate = self.fc_init(x).chunk(2, -1)
        before = states[:1] or [y.new_zeros(self.state_shapes(y.shape[0], y.shape[2])[0])]
        seen = torch.cat([*before, y], 1)
        onward, scanned = self.onward(F.silu(_along_frames(seen, self.conv.weight, self.conv.bias)), states[1:])
        if self.bidirectional:
            # From the last frame on is the same with the taps and the missing frames at the other end.
            coming = torch.cat([y, torch.zeros_like(before[0])], 1)
            conv_rev = _along_frames(coming, self.conv_rev.weight.flip(2), self.conv_rev.bias)
            onward = onward + self.backward_in_time(F.silu(conv_rev))
        after = [seen[:, -(CONVOLUTION_FRAMES - 1) :], *scanned] if states else []
        return self.fc_out(onward * F.silu(gate)), after


def _along_frames(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Each channel of x [B, F + taps - 1, P, E] with its own taps [E, 1, taps]: [B, F, P, E]."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight[..., None], bias, groups=len(weight)).permute(0, 2, 3, 1)


LAYERS: dict[int, type[TemporalLayer]] = {1: ConcatMlp, 2: GatedSum, 8: GatedSumMlp, 10: BiGS, 20: Vim}


def temporal_layer(config: TemporalConfig, dim: int) -> TemporalLayer:
    """The layer of `config` for `dim` channels."""
    return LAYERS[config.version](config, dim)
