"""Layers whose weights are packed; each stands wherever its plain sibling stands.

Owns the bytes and their format; what the operators compute from them is the kernels'.
"""

from __future__ import annotations

import torch
from torch import nn

from ernie_local.kernels.ops import packed_experts, packed_linear, packed_rows
from ernie_local.packing import PageLayout


class PackedLinear(nn.Module):
    """hidden @ weights.T, plus a bias where there is one."""

    packed: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self, packed: torch.Tensor, format_name: str, rows: int, bias: torch.Tensor | None = None
    ) -> None:
        """packed: (matrix_bytes,) uint8 of a matrix of `rows` x the width of what comes in; bias: (rows,)."""
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("bias", bias)
        self.format_name = format_name
        self.rows = rows

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (tokens, columns) -> (tokens, rows)."""
        output = packed_linear(hidden, self.packed, self.format_name, self.rows)
        return output if self.bias is None else output.add_(self.bias)


class PackedEmbedding(nn.Module):
    """Rows of a packed matrix by token id; the same bytes may serve as the head."""

    packed: torch.Tensor

    def __init__(
        self, packed: torch.Tensor, format_name: str, rows: int, columns: int, dtype: torch.dtype
    ) -> None:
        """packed: (matrix_bytes,) uint8 of a matrix of `rows` x `columns`; dtype: of what comes out."""
        super().__init__()
        self.register_buffer("packed", packed)
        self.format_name = format_name
        self.rows, self.columns = rows, columns
        self.dtype = dtype

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids: (tokens,) integers -> (tokens, columns)."""
        rows = packed_rows(token_ids.long(), self.packed, self.format_name, self.rows, self.columns)
        return rows.to(self.dtype)

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """As the head of a model whose embedding is tied: hidden (tokens, columns) -> (tokens, rows)."""
        return packed_linear(hidden, self.packed, self.format_name, self.rows)


class PackedGatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) from one page: an expert that every token visits."""

    page: torch.Tensor

    def __init__(self, page: torch.Tensor, layout: PageLayout) -> None:
        """page: (1, page_bytes) uint8, of this layout."""
        super().__init__()
        self.register_buffer("page", page)
        self.layout = layout

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (tokens, hidden_size) -> the same shape."""
        if not hidden.is_cpu:
            from ernie_local.kernels.cuda_ops import packed_gated_mlp

            return packed_gated_mlp(hidden, self.page, self.layout)
        num_tokens = hidden.shape[0]
        only = torch.zeros(num_tokens, 1, dtype=torch.int64, device=hidden.device)
        return packed_experts(hidden, self.page, only, hidden.new_ones(num_tokens, 1))
