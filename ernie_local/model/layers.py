"""The layers that the network is built of. A packed layer takes the place of its plain sibling.

Plain layers start without values: every value comes from a checkpoint. A random start would be lost work, and
on empty (meta) tensors it makes torch import its compiler, for seconds.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.nn import functional

from ernie_local.kernels.decode_ops import MOST_TOKENS, rms_norm, suits_decode_ops
from ernie_local.kernels.ops import packed_experts, packed_linear, packed_rows
from ernie_local.packing import PageLayout


class Linear(nn.Linear):
    """A linear layer whose values are to be filled in."""

    def reset_parameters(self) -> None:
        """Leave the values as they are."""


class Embedding(nn.Embedding):
    """An embedding whose values are to be filled in."""

    def reset_parameters(self) -> None:
        """Leave the values as they are."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    The mean is taken in float32 and the result is cast back before the weight is applied: the order in
    which the model was trained, and the one that decides router near-ties in 16-bit runs.
    """

    def __init__(self, size: int, eps: float, *, always_native: bool = False) -> None:
        """always_native: for many tokens the operator saves three of four passes over memory, but sums in
        another order than torch, which changes near-ties of routers. It does not matter with packed weights.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self._most_native_tokens = sys.maxsize if always_native else MOST_TOKENS

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (..., size) in any float dtype -> the same shape and dtype."""
        if suits_decode_ops(hidden, self._most_native_tokens):
            return rms_norm(hidden, self.weight, self.eps)
        exact = hidden.float()
        mean_square = exact.pow(2).mean(-1, keepdim=True)
        return self.weight * (exact * torch.rsqrt(mean_square + self.eps)).to(hidden.dtype)


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
