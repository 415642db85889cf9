"""The gated MLP of the dense layers and of the shared experts; routed experts live behind ExpertProvider."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ernie_local.model.unfilled import Linear


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, inner_size, bias=False)
        self.up_proj = Linear(hidden_size, inner_size, bias=False)
        self.down_proj = Linear(inner_size, hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (tokens, hidden_size) -> (tokens, hidden_size)."""
        inner: torch.Tensor = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        output: torch.Tensor = self.down_proj(inner)
        return output
