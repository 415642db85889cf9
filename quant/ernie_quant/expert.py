"""Quantizes one expert from the tokens that the router sends to it.

Gate and up see the tokens; down sees what the quantized gate and up make of them. The second moments of each
matrix are drawn toward a prior: for gate and up that of all tokens of the bank; for down, whose inputs no
other expert shares, that of the tokens that the router ranks next. A second page in other formats comes from
the same tokens and moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec
import torch
from torch.nn import functional

from ernie_local.config import Bank
from ernie_local.kernels.arguments import PackedMatrix
from ernie_local.kernels.linear import packed_linear
from ernie_local.packing import ExpertPage, LowBitFormat, QuantizedMatrix, pack_matrix
from ernie_quant.grid import rows_of
from ernie_quant.hessian import Moments, second_moments, shrink
from ernie_quant.recipe import Recipe, quantize_matrix
from ernie_quant.refine import output_error

Tensor = torch.Tensor
PageFormats = tuple[LowBitFormat, LowBitFormat]  # of gate and up, and of down
RoutedExpert = tuple[int, Bank, int]  # layer, bank, id
# Of a gradient's length: with its square, one token in a hundred would be all that counts.
_WORTH_POWER = 0.5


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
class OutputGradients:
    """What the answers would show of errors at an expert's outputs, before the router's weights.

    own: gradients for its first tokens, in parts of (tokens, hidden) as the tokens come; num_own: rows of
    them. bank: (hidden, hidden) second moments of all tokens of the bank, of trace 1, or zeros.
    """

    own: Iterable[Tensor]
    num_own: int
    bank: Tensor


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
    gradients: OutputGradients | None = None


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
    moments, effective_tokens = input_moments(inputs, recipe)
    pages: list[ExpertPage] = []
    errors: list[float] = []
    for formats in (page,) if small_page is None else (page, small_page):
        made, lost = _quantize_page(weights, inputs, moments, formats, recipe)
        pages.append(made)
        errors += lost
    return pages, ExpertReport(inputs.weights.numel(), effective_tokens, *errors)


def input_moments(inputs: ExpertInputs, recipe: Recipe) -> tuple[Tensor, float]:
    """Second moments of what gate and up meet, (hidden, hidden), drawn toward those of the bank.

    Also the effective number of tokens that they are of.
    """
    hidden_size = len(inputs.bank_moments)
    own = second_moments(inputs.tokens, _token_weights(inputs, recipe), hidden_size)
    return shrink(own, inputs.bank_moments, recipe.shrinkage * hidden_size), own.effective_tokens


def inner_moments(
    inputs: ExpertInputs, recipe: Recipe, inner: Callable[[Tensor], Tensor], inner_size: int
) -> Tensor:
    """Second moments of what down meets, (inner, inner), drawn toward those of the neighbours.

    inner: makes it, (tokens, inner), of some of the tokens.
    """
    own = second_moments(map(inner, inputs.tokens), _token_weights(inputs, recipe), inner_size)
    alike = torch.ones(inputs.num_neighbours)
    prior = second_moments(map(inner, inputs.neighbours), alike, inner_size).matrix
    return shrink(own, prior, recipe.shrinkage * inner_size)


def _token_weights(inputs: ExpertInputs, recipe: Recipe) -> Tensor:
    weights = inputs.weights.square() if recipe.square_weights else torch.ones_like(inputs.weights)
    if inputs.gradients is not None and inputs.gradients.num_own:
        worth = gradient_lengths(inputs.gradients.own).pow_(_WORTH_POWER)
        mean = worth.mean()
        if bool(mean > 0):  # tokens whose gradient is not known count as the others on average
            weights[: len(worth)] *= worth / mean
    return weights


def output_sides(
    weights: ExpertWeights, inputs: ExpertInputs, recipe: Recipe
) -> tuple[Tensor | None, Tensor | None]:
    """Second moments of the gradients at the outputs of gate and up together, and of down; of trace 1.

    Of directions, a long gradient counting by its length alone: few are very long. Few tokens leave those of
    gate and up near the identity, those of down near the bank's. None where the answers do not say.
    """
    gradients = inputs.gradients
    if gradients is None or not float(gradients.bank.trace()) > 0:
        return None, None
    inner_size, hidden_size = weights.gate.shape
    # Tokens without influence on any answer have no direction, and no weight.
    token_weights = inputs.weights[: gradients.num_own].square() * gradient_lengths(gradients.own)
    at_down = second_moments(map(gradient_directions, gradients.own), token_weights, hidden_size)
    at_inner = second_moments(_inner_gradients(weights, inputs), token_weights, 2 * inner_size)
    even = torch.eye(2 * inner_size) / (2 * inner_size)
    trace = at_inner.matrix.trace().clamp(min=torch.finfo(torch.float32).tiny)
    scaled = Moments(at_inner.matrix / trace, at_inner.effective_tokens)
    strength = recipe.shrinkage
    return (
        shrink(scaled, even, strength * 2 * inner_size),
        shrink(at_down, gradients.bank, strength * hidden_size),
    )


def gradient_lengths(parts: Iterable[Tensor]) -> Tensor:
    """parts: gradients, (tokens, hidden) -> (all tokens,)."""
    return torch.cat([part.norm(dim=1) for part in parts] or [torch.zeros(0)])


def gradient_directions(gradients: Tensor) -> Tensor:
    """gradients: (tokens, hidden) -> the same of length 1, or 0 where there is none."""
    return functional.normalize(gradients, dim=1)


def _inner_gradients(weights: ExpertWeights, inputs: ExpertInputs) -> Iterator[Tensor]:
    """Of each part, the gradients at the outputs of gate and of up, (tokens, 2 * inner)."""
    assert inputs.gradients is not None
    for tokens, gradients in zip(inputs.tokens, inputs.gradients.own, strict=False):
        known = tokens[: len(gradients)]
        gated, raised = known @ weights.gate.t(), known @ weights.up.t()
        at_inner = gradient_directions(gradients) @ weights.down
        sigmoid = gated.sigmoid()
        slope = sigmoid * (1 + gated * (1 - sigmoid))  # of silu
        yield torch.cat((at_inner * raised * slope, at_inner * gated * sigmoid), dim=1)


def _quantize_page(
    weights: ExpertWeights,
    inputs: ExpertInputs,
    moments: Tensor,
    formats: PageFormats,
    recipe: Recipe,
) -> tuple[ExpertPage, tuple[float, float]]:
    """One page, and the errors of gate and up, and of down. moments: (hidden, hidden) of the inputs."""
    gate_up, down = formats
    inner_size = weights.down.shape[1]
    # Both as one matrix: they share their inputs, so the costly factor is computed once.
    both = torch.cat((weights.gate, weights.up))
    at_gate_up, at_down = output_sides(weights, inputs, recipe)
    quantized = quantize_matrix(both, gate_up, recipe, moments, at_gate_up)
    gate, up = (rows_of(quantized, slice(start, start + inner_size)) for start in (0, inner_size))
    gate_up_error = output_error(both, moments, quantized)

    of_inner = inner_moments(inputs, recipe, packed_inner(gate, up), inner_size)
    quantized_down = quantize_matrix(weights.down, down, recipe, of_inner, at_down)
    down_error = output_error(weights.down, of_inner, quantized_down)
    return ExpertPage(gate, up, quantized_down), (gate_up_error, down_error)


def packed_inner(gate: QuantizedMatrix, up: QuantizedMatrix) -> Callable[[Tensor], Tensor]:
    """What makes of (tokens, hidden) silu(gate x) * (up x) as the runtime computes it, (tokens, inner)."""
    packed = [
        PackedMatrix(pack_matrix(matrix), matrix.low_bit.name, matrix.codes.shape[0]) for matrix in (gate, up)
    ]

    def inner(tokens: Tensor) -> Tensor:
        gated, raised = (packed_linear(tokens, matrix) for matrix in packed)
        return functional.silu(gated) * raised

    return inner
