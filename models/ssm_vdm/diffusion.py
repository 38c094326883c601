"""The noise schedule, and a sampler as one linear combination a step.

Noisy video at timestep t: alpha x0 + sigma noise with alpha^2 + sigma^2 = 1, alpha^2 falling as a cosine (arXiv
2102.09672). Both samplers go from one noise level to a lower one by

    next = keep * sample + move * x0 + spread * noise

with x0 as the network predicts it, clipped to [-1, 1]. DDIM with eta 0 (arXiv 2010.02502) has spread = 0 and keeps the
noise that the sample implies; DDPM (arXiv 2006.11239) draws from the posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from videossm.models.ssm_vdm.config import DiffusionConfig

COSINE_OFFSET = 0.008  # keeps the first steps from being too small
LARGEST_BETA = 0.9999


@dataclass(frozen=True)
class Pass:
    """The scalars of one step of the sampler, computed in float64."""

    timestep: float
    alpha: float  # of the sample that comes in
    sigma: float
    keep: float
    move: float
    spread: float  # 0 for DDIM and in the last step


def alpha_bars(timesteps: int) -> Tensor:
    """alpha^2 at every timestep, from nearly 1 down to nearly 0: float64 [timesteps]."""
    at = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    level = ((at + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).cos().square()
    betas = (1 - level[1:] / level[:-1]).clamp(0, LARGEST_BETA)
    return (1 - betas).cumprod(0)


def passes(config: DiffusionConfig) -> list[Pass]:
    """The steps in the order of running, from noise to video."""
    bars = alpha_bars(config.timesteps)
    share = torch.linspace(1, 0, config.steps, dtype=torch.float64)
    warped = config.shift * share / (1 + (config.shift - 1) * share)
    indices = ((config.timesteps - 1) * warped).round().long().tolist()
    after = [*(float(bars[i]) for i in indices[1:]), 1.0]
    make = _ddim if config.sampler == "ddim" else _ddpm
    return [make(index, float(bars[index]), bar_next) for index, bar_next in zip(indices, after, strict=True)]


def scalars(config: DiffusionConfig) -> list[dict[str, float]]:
    """Of each of `passes` the numbers that a step reads, by name."""
    of_prediction = ["alpha", "sigma"] if config.prediction == "noise" else []
    names = ["timestep", *of_prediction, "keep", "move", *(["spread"] if config.sampler == "ddpm" else [])]
    return [{name: getattr(each, name) for name in names} for each in passes(config)]


def _ddim(timestep: int, bar: float, bar_next: float) -> Pass:
    alpha, sigma = bar**0.5, (1 - bar) ** 0.5
    keep = (1 - bar_next) ** 0.5 / sigma
    return Pass(timestep, alpha, sigma, keep, bar_next**0.5 - keep * alpha, 0.0)


def _ddpm(timestep: int, bar: float, bar_next: float) -> Pass:
    beta = 1 - bar / bar_next
    keep = (1 - bar_next) * (1 - beta) ** 0.5 / (1 - bar)
    move = bar_next**0.5 * beta / (1 - bar)
    return Pass(timestep, bar**0.5, (1 - bar) ** 0.5, keep, move, (beta * (1 - bar_next) / (1 - bar)) ** 0.5)
