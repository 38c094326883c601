"""S4D: a diagonal linear state space a channel, time-invariant, in real arithmetic throughout.

    x_t = e^{dt A} x_{t-1} + u_t;   y_t = 2 Re(C' x_t) + D u_t;   C' = C (e^{dt A} - 1) / A

Zero-order hold with B = 1 (arXiv 2206.11893), as in the code of arXiv 2403.07711: A = -exp(log_A_real) + i A_imag and
dt = exp(log_dt), N / 2 conjugate pairs for N real values of state.

Because nothing depends on the input, any number of frames in a row is one linear map. `S4D.transition` writes it down
as a matrix, from inputs and state before to outputs and state after; a chunk is one matrix product, with 1 frame it is
the recurrence, and without the state's rows it is the convolution.

Shapes here: E channels, N values of state, n = N / 2 pairs, F frames; P places, each a sequence of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from videossm.models.scans.precision import full_precision

BLOCK_FRAMES = 32  # of one matrix: as fast as 16, about as many as a state has values, with half the nodes
DT_RANGE = (1e-3, 0.1)  # of a new layer, drawn evenly in the logarithm


class S4DKernel(nn.Module):
    """The parameters and what follows from them."""

    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        pairs = state // 2
        low, high = (math.log(x) for x in DT_RANGE)
        self.C = nn.Parameter(torch.randn(channels, pairs, 2) * 0.5**0.5)
        self.log_dt = nn.Parameter(torch.rand(channels) * (high - low) + low)
        self.log_A_real = nn.Parameter(torch.full((channels, pairs), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(pairs, dtype=torch.float32).repeat(channels, 1))

    def powers(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of e^{l dt A} for l = first, ..., first + count - 1: [E, n, count] each."""
        dt = self.log_dt.exp()[:, None, None]
        step = torch.arange(first, first + count, dtype=dt.dtype, device=dt.device)
        decay = (-self.log_A_real.exp()[..., None] * dt * step).exp()
        angle = self.A_imag[..., None] * dt * step
        return decay * angle.cos(), decay * angle.sin()

    def read_out(self) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of 2 C': [E, n] each."""
        dt = self.log_dt.exp()[:, None]
        real, imaginary = -self.log_A_real.exp(), self.A_imag
        # e^{dt A} - 1 without cancellation: dt is small.
        angle = imaginary * dt
        up = torch.expm1(real * dt) * angle.cos() - 2 * (angle / 2).sin().square()
        right = (real * dt).exp() * angle.sin()
        length = real.square() + imaginary.square()
        held = (up * real + right * imaginary) / length, (right * real - up * imaginary) / length
        c_real, c_imaginary = self.C.unbind(-1)
        return 2 * (c_real * held[0] - c_imaginary * held[1]), 2 * (c_real * held[1] + c_imaginary * held[0])

    def taps(self, frames: int) -> Tensor:
        """The convolution's kernel without D: [E, frames]."""
        real, imaginary = self.powers(0, frames)
        p, q = self.read_out()
        return (p[..., None] * real - q[..., None] * imaginary).sum(1)


class S4D(nn.Module):
    """The layer."""

    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        self.state = state
        self.D = nn.Parameter(torch.randn(channels))
        self.kernel = S4DKernel(channels, state)

    def state_shape(self, batch: int, places: int) -> tuple[int, ...]:
        """Of the state of so many sequences."""
        return batch, len(self.D), places, self.state

    @torch.no_grad()
    def fix(self, frames: int, streamed: bool) -> None:
        """Computes the matrices for chunks of `frames` frames now, so that an exported graph holds constants.

        Weights that are loaded afterwards are not in them; training does not use them.
        """
        with_state = streamed or frames > BLOCK_FRAMES
        for size in {min(frames, BLOCK_FRAMES), frames % BLOCK_FRAMES} - {0}:
            matrix = self.transition(size) if with_state else self.convolution(size)
            self.register_buffer(_fixed_name(size, with_state), matrix, persistent=False)

    def convolution(self, frames: int) -> Tensor:
        """[E, F, F]: inputs @ this = outputs, of sequences that begin here."""
        taps = self.kernel.taps(frames)
        taps = torch.cat([taps[:, :1] + self.D[:, None], taps[:, 1:]], 1)
        lag = torch.arange(frames)[None, :] - torch.arange(frames)[:, None]
        return taps[:, lag.clamp(min=0)] * (lag >= 0)

    def transition(self, frames: int) -> Tensor:
        """[E, F + N, F + N]: [inputs, state] @ this = [outputs, next state]. Real parts of the state come first."""
        real, imaginary = self.kernel.powers(0, frames + 1)
        p, q = (x[..., None] for x in self.kernel.read_out())
        # Read-out of the state as it decays, and what an input adds to the last state.
        read = torch.cat([p * real - q * imaginary, -(p * imaginary + q * real)], 1)[:, :, 1:]
        write = torch.cat([real, imaginary], 1)[:, :, :frames].flip(2).transpose(1, 2)
        last_real, last_imaginary = torch.diag_embed(real[..., -1]), torch.diag_embed(imaginary[..., -1])
        turn = torch.cat([torch.cat([last_real, last_imaginary], 2), torch.cat([-last_imaginary, last_real], 2)], 1)
        return torch.cat([torch.cat([self.convolution(frames), write], 2), torch.cat([read, turn], 2)], 1)

    def forward(self, inputs: Tensor, state: Tensor | None, reverse: bool = False) -> tuple[Tensor, Tensor | None]:
        """Sequences [B, E, P, F] to outputs [B, E, P, F] and the state after them [B, E, P, N].

        `state`: after the frames before; None where there are none, and the state returned is then None too.
        `reverse` runs from the last frame to the first, without a state.
        """
        batch, _, places, frames = inputs.shape
        if state is None and frames <= BLOCK_FRAMES:
            matrix = self._matrix(frames, with_state=False)
            outputs = inputs @ (matrix.transpose(1, 2) if reverse else matrix).to(inputs.dtype)
        elif reverse:
            outputs = self._blocks(inputs.flip(3), inputs.new_zeros(self.state_shape(batch, places)))[0].flip(3)
        else:
            begun = inputs.new_zeros(self.state_shape(batch, places)) if state is None else state
            outputs, after = self._blocks(inputs, begun)
            state = None if state is None else after
        return outputs, state

    def _blocks(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for block in inputs.split(BLOCK_FRAMES, 3):
            frames = block.shape[3]
            both = torch.cat([block, state], 3) @ self._matrix(frames, with_state=True).to(inputs.dtype)
            out, state = both.split_with_sizes([frames, self.state], 3)
            outputs.append(out)
        return torch.cat(outputs, 3), state

    def _matrix(self, frames: int, with_state: bool) -> Tensor:
        fixed = None if self.training else getattr(self, _fixed_name(frames, with_state), None)
        if fixed is not None:
            return fixed
        with full_precision(self.D):
            return self.transition(frames) if with_state else self.convolution(frames)


def _fixed_name(frames: int, with_state: bool) -> str:
    return f"{'transition' if with_state else 'convolution'}_{frames}"
