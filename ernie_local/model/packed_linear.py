"""Layers whose weights are packed; each stands wherever its plain sibling stands.

Owns the bytes and their format; what the operators compute from them is the kernels'.
"""

from __future__ import annotations

import torch
from torch import nn

from ernie_local.kernels.arguments import PackedMatrix
from ernie_local.kernels.experts import packed_gated_mlp
from ernie_local.kernels.linear import packed_linear, packed_rows
from ernie_local.packing import PageLayout


class _PackedModule(nn.Module):
    """A module over one packed matrix, which moves with it from device to device."""

    packed: torch.Tensor

    def __init__(self, matrix: PackedMatrix) -> None:
        super().__init__()
        self.register_buffer("packed", matrix.packed)
        self.format_name = matrix.format_name
        self.rows = matrix.rows
        self._gpu_kernels = matrix.gpu_kernels

    def _matrix(self) -> PackedMatrix:
        return PackedMatrix(self.packed, self.format_name, self.rows, self._gpu_kernels)


class PackedLinear(_PackedModule):
    """hidden @ weights.T, plus a bias where there is one."""

    bias: torch.Tensor | None

    def __init__(self, matrix: PackedMatrix, bias: torch.Tensor | None = None) -> None:
        """matrix: with as many columns as what comes in has; bias: (rows,)."""
        super().__init__(matrix)
        self.register_buffer("bias", bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (tokens, columns) -> (tokens, rows)."""
        output = packed_linear(hidden, self._matrix())
        return output if self.bias is None else output.add_(self.bias)


class PackedEmbedding(_PackedModule):
    """Rows of a packed matrix by token id; the same bytes may serve as the head."""

    def __init__(self, matrix: PackedMatrix, columns: int, dtype: torch.dtype) -> None:
        """columns: of the matrix; dtype: of what comes out."""
        super().__init__(matrix)
        self.columns = columns
        self.dtype = dtype

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids: (tokens,) integers -> (tokens, columns)."""
        return packed_rows(token_ids.long(), self._matrix(), self.columns).to(self.dtype)

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """As the head of a model whose embedding is tied: hidden (tokens, columns) -> (tokens, rows)."""
        return packed_linear(hidden, self._matrix())


class PackedGatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) from one page: an expert that every token visits."""

    page: torch.Tensor

    def __init__(self, page: torch.Tensor, layout: PageLayout, gpu_kernels: str = "auto") -> None:
        """page: (1, page_bytes) uint8, of this layout."""
        super().__init__()
        self.register_buffer("page", page)
        self.layout = layout
        self._gpu_kernels = gpu_kernels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (tokens, hidden_size) -> the same shape."""
        return packed_gated_mlp(hidden, self.page, self.layout, self._gpu_kernels)
