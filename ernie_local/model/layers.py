"""The layers that the network is built of. A packed layer takes the place of its plain sibling.

Plain layers start without values: every value comes from a checkpoint. A random start would be lost work, and
on empty (meta) tensors it makes torch import its compiler, for seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ernie_local.config import ModelConfig
from ernie_local.kernels.arguments import NOTHING_ADDED, LowRankExperts, LowRankParts, PackedMatrix
from ernie_local.kernels.experts import packed_gated_mlp
from ernie_local.kernels.linear import packed_linear, packed_rows
from ernie_local.kernels.low_rank import add_low_rank
from ernie_local.kernels.native import native_module
from ernie_local.kernels.norm_route import rms_norm
from ernie_local.kernels.operators import MOST_TOKENS, suits_decode_ops
from ernie_local.kernels.reference import plain_rms_norm
from ernie_local.packing import PageLayout
from ernie_local.packing.formats import FORMATS


class Linear(nn.Linear):
    """A linear layer whose values are to be filled in."""

    def reset_parameters(self) -> None:
        """Leave the values as they are."""


class Embedding(nn.Embedding):
    """An embedding whose values are to be filled in."""

    def reset_parameters(self) -> None:
        """Leave the values as they are."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(self, size: int, eps: float, *, always_native: bool = False) -> None:
        """always_native: for many tokens the operator saves three of four passes over memory, but sums in
        another order than torch, which changes near-ties of routers. It does not matter with packed weights.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self._most_native_tokens = sys.maxsize if always_native else MOST_TOKENS

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (..., size) in any float dtype -> the same shape and dtype."""
        if suits_decode_ops(hidden, self._most_native_tokens):
            return rms_norm(hidden, self.weight, self.eps)
        return plain_rms_norm(hidden, self.weight, self.eps)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, inner_size, bias=False)
        self.up_proj = Linear(hidden_size, inner_size, bias=False)
        self.down_proj = Linear(inner_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (tokens, hidden_size) -> (tokens, hidden_size)."""
        inner: Tensor = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        output: Tensor = self.down_proj(inner)
        return output


class _PackedModule(nn.Module):
    """A module over one packed matrix, which moves with it from device to device."""

    packed: Tensor

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

    bias: Tensor | None

    def __init__(self, matrix: PackedMatrix, bias: Tensor | None = None) -> None:
        """matrix: with as many columns as what comes in has; bias: (rows,)."""
        super().__init__(matrix)
        self.register_buffer("bias", bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (tokens, columns) -> (tokens, rows)."""
        output = packed_linear(hidden, self._matrix())
        return output if self.bias is None else output.add_(self.bias)


class AdaptedLinear(nn.Module):
    """A linear layer, plain or packed, and what an adapter adds to its product."""

    def __init__(self, base: nn.Module, parts: LowRankParts) -> None:
        super().__init__()
        self.base, self.parts = base, parts

    @property
    def weight(self) -> Tensor:
        """Of a plain layer, without what is added to it."""
        weight = self.base.weight
        assert isinstance(weight, Tensor), "a packed layer has no such tensor"
        return weight

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (tokens, columns) -> (tokens, rows)."""
        output: Tensor = self.base(hidden)
        add_low_rank(output, hidden, self.parts)
        return output


def parts_of_linear(linear: nn.Module | None) -> tuple[nn.Module | None, LowRankParts]:
    """A layer without its adapter, and what that adds."""
    if isinstance(linear, AdaptedLinear):
        return linear.base, linear.parts
    return linear, NOTHING_ADDED


class PackedEmbedding(_PackedModule):
    """Rows of a packed matrix by token id; the same bytes may serve as the head."""

    def __init__(self, matrix: PackedMatrix, columns: int, dtype: torch.dtype) -> None:
        """columns: of the matrix; dtype: of what comes out."""
        super().__init__(matrix)
        self.columns = columns
        self.dtype = dtype

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: (tokens,) integers -> (tokens, columns)."""
        return packed_rows(token_ids.long(), self._matrix(), self.columns).to(self.dtype)

    def score(self, hidden: Tensor) -> Tensor:
        """As the head of a model whose embedding is tied: hidden (tokens, columns) -> (tokens, rows)."""
        return packed_linear(hidden, self._matrix())


class PackedGatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) from one page: an expert that every token visits."""

    page: Tensor

    def __init__(self, page: Tensor, layout: PageLayout, gpu_kernels: str = "auto") -> None:
        """page: (1, page_bytes) uint8, of this layout."""
        super().__init__()
        self.register_buffer("page", page)
        self.layout = layout
        self.adapter: LowRankExperts | None = None  # what is added to it, as to a bank of one expert
        self._gpu_kernels = gpu_kernels

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (tokens, hidden_size) -> the same shape."""
        return packed_gated_mlp(hidden, self.page, self.layout, self._gpu_kernels, self.adapter)


def computes_rows_apart(config: ModelConfig, modules: Iterable[nn.Module]) -> bool:
    """Whether all products of a network of these modules are those of our kernels for packed weights."""
    tables = config.quantization
    if tables is None or not tables.experts or native_module() is None:
        return False
    names = {part for formats in tables.experts.values() for one in formats for part in one.split("-")}
    return names <= FORMATS.keys() and not any(isinstance(one, Linear | Embedding) for one in modules)
