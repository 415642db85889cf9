"""Updates matrices and stacks of matrices by Muon.

Source: Jordan et al. 2024 (orthogonalised momentum by a Newton-Schulz iteration), with the update scale of
Liu et al. 2025 (arXiv 2502.16982), 0.2 sqrt(max(rows, columns)), which lets AdamW share its learning rate.
torch's own Muon takes two-dimensional parameters only; ours are mostly stacks of experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic of Jordan et al.


def orthogonalize(matrices: Tensor, steps: int = 4) -> Tensor:
    """Nearest (semi-)orthogonal matrices, roughly; (..., rows, columns), computed in bfloat16."""
    stack = matrices.bfloat16().flatten(0, -3) if matrices.dim() > 2 else matrices.bfloat16()[None]
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).float().reshape(matrices.shape)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; decoupled weight decay. Gate and up halves are orthogonalised apart."""

    def __init__(self, groups: Iterable[dict[str, Any]], weight_decay: float) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": 0.95, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One update from the gradients at hand."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"])
                rows, columns = update.shape[-2:]
                update = orthogonalize(update) * (0.2 * max(rows, columns) ** 0.5)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
