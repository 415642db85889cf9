"""A linear layer whose weights are packed; it stands wherever a plain one stands."""

from __future__ import annotations

import torch
from torch import nn

from ernie_local.kernels.ops import packed_linear


class PackedLinear(nn.Module):
    """hidden @ weights.T, without a bias."""

    packed: torch.Tensor

    def __init__(self, packed: torch.Tensor, format_name: str, rows: int) -> None:
        """packed: (matrix_bytes,) uint8 of a matrix of `rows` x the width of what comes in."""
        super().__init__()
        self.register_buffer("packed", packed)
        self.format_name = format_name
        self.rows = rows

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (tokens, columns) -> (tokens, rows)."""
        return packed_linear(hidden, self.packed, self.format_name, self.rows)
