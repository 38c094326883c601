"""The state-space memory beside the attention window: gates, read-out and router of one block.

Equations: VideoSSM (arXiv 2512.04519), section on the hybrid memory. The update itself, a gated delta
rule over the tokens that leave the window, is `videossm.models.scans.gated_delta`.

What the paper leaves open, and what is done here: what leaves the window enters token by token, not as an average; a
decay and a beta a head, as a d-wide beta fits no delta rule; the memory's keys carry no position; rho is evicted / seen
frames, as the paper's (t + 1) / T needs a fixed length T; the read-out joins the attention's before the output's
projection.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videossm.models.videossm.config import TransformerConfig
from videossm.models.videossm.norms import RMSNorm

RHO_MIN = 1e-3  # lower clamp of the share of frames that were evicted; the router takes its logarithm


class Memory(nn.Module):
    """Parameters of one block's memory. Beside the paper's W_b, beta has a bias, so that it can start anywhere."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.beta = nn.Linear(config.dim, config.heads)
        self.decay = nn.Linear(config.dim, config.heads, bias=False)
        self.decay_rate = nn.Parameter(torch.zeros(config.heads))  # A
        # softplus(bias) = 0.002 a token: a token's half life is some 350 tokens before training.
        self.decay_bias = nn.Parameter(torch.full((config.heads,), math.log(math.expm1(0.002))))  # B
        self.out_gate = nn.Linear(config.dim, config.dim)
        self.norm = RMSNorm(config.head_dim, config.eps)
        # gamma starts as rho / (1 + rho): no memory, no contribution.
        self.router_weight = nn.Parameter(torch.ones(config.heads))
        self.router_bias = nn.Parameter(torch.zeros(config.heads))

    def gates(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """From the block's input [B, T, D]: log-decay (<= 0) and beta (0..1), fp32 [B, T, H] each."""
        decay = -self.decay_rate.exp() * softplus(self.decay(hidden).float() + self.decay_bias)
        return decay, self.beta(hidden).float().sigmoid()

    def read(self, query: Tensor, hidden: Tensor, state: Tensor, rho: Tensor) -> Tensor:
        """gamma * swish(g_out * RMSNorm(Q M)), ready to be added to the attention's output.

        Args:
            query: [B, T, D], normalised, without rotary embedding, as the stored keys are.
            hidden: the block's input [B, T, D].
            state: M [B, H, d, d] fp32.
            rho: evicted / seen frames, clamped to [RHO_MIN, 1]: [1] or [B].

        Returns:
            [B, T, D].
        """
        heads = query.float().unflatten(-1, (self.heads, -1)).transpose(1, 2)
        read = self.norm((heads @ state).transpose(1, 2))
        gate = self.out_gate(hidden).unflatten(-1, (self.heads, -1))
        gamma = torch.sigmoid(self.router_weight * rho.log()[:, None] + self.router_bias)
        return (gamma[:, None, :, None] * F.silu(gate * read)).flatten(2)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) to 3e-7 of its value, of operators that every backend has.

    ONNX Runtime has no kernel of Softplus for CUDA (opset 22). The last term gives back what 1 + e^-|x| lost.
    """
    e = (-x.abs()).exp()
    above = 1 + e
    return x.relu() + above.log() + (e - (above - 1)) / above
