"""Quantizes one expert from the tokens that the router sends to it.

Gate and up see the tokens; down sees what the quantized gate and up make of them. The second moments of each
matrix are drawn toward a prior: for gate and up that of all tokens of the bank; for down, whose inputs no
other expert shares, that of the tokens that the router ranks next. A second page in other formats comes from
the same tokens and moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec
import torch
from torch.nn import functional

from ernie_local.config import Bank
from ernie_local.kernels.arguments import PackedMatrix
from ernie_local.kernels.linear import packed_linear
from ernie_local.packing import ExpertPage, LowBitFormat, QuantizedMatrix, pack_matrix
from ernie_quant.hessian import second_moments, shrink
from ernie_quant.recipe import Recipe, quantize_matrix
from ernie_quant.refine import output_error

Tensor = torch.Tensor
PageFormats = tuple[LowBitFormat, LowBitFormat]  # of gate and up, and of down
RoutedExpert = tuple[int, Bank, int]  # layer, bank, id


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """gate, up: (inner, hidden); down: (hidden, inner); float32."""

    gate: Tensor
    up: Tensor
    down: Tensor

    def inner(self, tokens: Tensor) -> Tensor:
        """silu(gate x) * up x, (tokens, inner)."""
        return functional.silu(tokens @ self.gate.t()).mul_(tokens @ self.up.t())

    def outputs(self, tokens: Tensor) -> Tensor:
        """(tokens, hidden)."""
        return self.inner(tokens) @ self.down.t()

    def weighted_outputs(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """The same, multiplied by router weights, (tokens, 1)."""
        return self.outputs(tokens).mul_(weights)


@dataclass(frozen=True, slots=True)
class ExpertInputs:
    """tokens: (tokens, hidden) routed to the expert; weights: (tokens,) of the router.

    neighbours: (num_neighbours, hidden), tokens of the bank that are routed elsewhere but rank this expert
    next. Both come in parts, and can be iterated more than once. bank_moments: (hidden, hidden) of all tokens
    of the bank.
    """

    tokens: Iterable[Tensor]
    weights: Tensor
    neighbours: Iterable[Tensor]
    num_neighbours: int
    bank_moments: Tensor


class ExpertReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an expert was quantized from, and the share of its outputs' power that was lost.

    Errors are taken over the second moments that were used. 0 effective tokens: only the prior was used.
    Errors of a small page are None if there is none.
    """

    tokens: int
    effective_tokens: float
    gate_up_error: float
    down_error: float
    small_gate_up_error: float | None = None
    small_down_error: float | None = None

    @property
    def loss(self) -> float | None:
        """About the share of the power of the expert's own outputs that was lost; None without tokens.

        Errors of gate and up, and of down, add up there.
        """
        return self.gate_up_error + self.down_error if self.tokens else None

    @property
    def small_loss(self) -> float | None:
        """The same of its small page; None if there is none."""
        if not self.tokens or self.small_gate_up_error is None or self.small_down_error is None:
            return None
        return self.small_gate_up_error + self.small_down_error


def quantize_expert(
    weights: ExpertWeights,
    inputs: ExpertInputs,
    recipe: Recipe,
    page: PageFormats,
    small_page: PageFormats | None = None,
) -> tuple[list[ExpertPage], ExpertReport]:
    """The expert's page, and its small page if wanted. The recipe's method must be `gptq`."""
    token_weights = inputs.weights.square() if recipe.square_weights else torch.ones_like(inputs.weights)
    hidden_size = weights.down.shape[0]
    own = second_moments(inputs.tokens, token_weights, hidden_size)
    moments = shrink(own, inputs.bank_moments, recipe.shrinkage * hidden_size)
    pages: list[ExpertPage] = []
    errors: list[float] = []
    for formats in (page,) if small_page is None else (page, small_page):
        made, lost = _quantize_page(weights, inputs, token_weights, moments, formats, recipe)
        pages.append(made)
        errors += lost
    return pages, ExpertReport(inputs.weights.numel(), own.effective_tokens, *errors)


def _quantize_page(
    weights: ExpertWeights,
    inputs: ExpertInputs,
    token_weights: Tensor,
    moments: Tensor,
    formats: PageFormats,
    recipe: Recipe,
) -> tuple[ExpertPage, tuple[float, float]]:
    """One page, and the errors of gate and up, and of down. moments: (hidden, hidden) of the inputs."""
    gate_up, down = formats
    inner_size = weights.down.shape[1]
    # Both as one matrix: they share their inputs, so the costly factor is computed once.
    both = torch.cat((weights.gate, weights.up))
    quantized = quantize_matrix(both, gate_up, recipe, moments)
    gate, up = _rows(quantized, 0, inner_size), _rows(quantized, inner_size, 2 * inner_size)
    gate_up_error = output_error(both, moments, quantized)

    packed = [PackedMatrix(pack_matrix(part), gate_up.name, inner_size) for part in (gate, up)]

    def inner_values(tokens: Iterable[Tensor]) -> Iterator[Tensor]:
        """silu(gate x) * (up x) as the runtime computes it, (tokens, inner) in parts."""
        for part in tokens:
            gated, raised = (packed_linear(part, matrix) for matrix in packed)
            yield functional.silu(gated) * raised

    own_inner = second_moments(inner_values(inputs.tokens), token_weights, inner_size)
    alike = torch.ones(inputs.num_neighbours)
    prior = second_moments(inner_values(inputs.neighbours), alike, inner_size).matrix
    inner_moments = shrink(own_inner, prior, recipe.shrinkage * inner_size)
    quantized_down = quantize_matrix(weights.down, down, recipe, inner_moments)
    down_error = output_error(weights.down, inner_moments, quantized_down)
    return ExpertPage(gate, up, quantized_down), (gate_up_error, down_error)


def _rows(matrix: QuantizedMatrix, start: int, stop: int) -> QuantizedMatrix:
    zeros, row_scales = matrix.zeros, matrix.row_scales
    return QuantizedMatrix(
        matrix.low_bit,
        matrix.codes[start:stop],
        matrix.scales[start:stop],
        None if zeros is None else zeros[start:stop],
        None if row_scales is None else row_scales[start:stop],
    )
