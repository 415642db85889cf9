"""Defines the methods with their settings, and quantizes one matrix by one of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ernie_local.errors import UsageError
from ernie_local.packing import LowBitFormat, QuantizedMatrix
from ernie_local.packing.rounding import LEAST_HALF, round_to_nearest, trellis_scales
from ernie_quant.gptq import choose_codes, order_and_factor
from ernie_quant.grid import grid_of, round_to_grid, search_grid
from ernie_quant.hessian import damped
from ernie_quant.refine import refine
from ernie_quant.trellis_gptq import choose_paths, ring_order_and_factor
from ernie_quant.trellis_refine import refine_paths, steps_of
from ernie_quant.two_sided import ChooseRows, quantize_two_sided

QuantizationMethod = Literal["rtn", "clip", "gptq", "nf4", "quanto", "quanto-hqq"]
# Of the mean of the output side's diagonal: gradients say little of large errors.
OUTPUT_DAMPING = 0.3
METHODS: tuple[QuantizationMethod, ...] = get_args(QuantizationMethod)


@dataclass(frozen=True, slots=True)
class Recipe:
    """`gptq` needs second moments; `clip`, `rtn` and other libraries' methods need only weights.

    shrinkage: the weight of the bank's moments, in tokens for each column of the matrix. sweeps: of
    refinement after GPTQ. square_weights: weight each token by its squared router weight, because its output
    is multiplied by it.
    """

    method: QuantizationMethod = "gptq"
    shrinkage: float = 1.0
    sweeps: int = 2
    square_weights: bool = True
    by_answers: bool = False

    def __post_init__(self) -> None:
        """UsageError for an unknown method or a negative number."""
        if self.method not in METHODS:
            raise UsageError(
                f"there is no method {self.method!r}",
                f"the methods are {', '.join(METHODS)}",
                "use gptq, or rtn for a quick checkpoint without calibration",
            )
        if self.shrinkage < 0 or self.sweeps < 0:
            raise UsageError(
                f"shrinkage {self.shrinkage} and {self.sweeps} sweeps, neither can be below 0",
                "shrinkage is the weight of the bank, sweeps count the passes of refinement",
                "omit them: the defaults 1.0 and 2 were measured to be good",
            )


def quantize_matrix(
    weights: torch.Tensor,
    low_bit: LowBitFormat,
    recipe: Recipe,
    moments: torch.Tensor | None = None,
    output_side: torch.Tensor | None = None,
) -> QuantizedMatrix:
    """weights: (rows, columns) finite; moments: (columns, columns) of its inputs, which only `gptq` needs;
    output_side: (rows, rows) second moments of gradients at its outputs, if they are known.

    w8 is always rounded to nearest, as its error is far below that of the others; so is w2t without moments.
    Other libraries' methods have formats of their own (foreign.py); for our formats they mean `clip`.
    """
    if recipe.method == "rtn" or low_bit.has_fp16_scales or (low_bit.is_trellis and recipe.method != "gptq"):
        return round_to_nearest(weights, low_bit)
    if recipe.method != "gptq":
        return round_to_grid(weights, search_grid(weights, low_bit))
    assert moments is not None, recipe.method
    # A row below every fp16 scale is zero, or one column's error would be spread over the others.
    weights = weights.where(weights.abs().amax(1, keepdim=True) >= LEAST_HALF, 0.0)
    side = None if output_side is None else damped(output_side, OUTPUT_DAMPING)
    return quantize_calibrated(weights, low_bit, damped(moments), side, recipe.sweeps)


def quantize_calibrated(
    weights: torch.Tensor,
    low_bit: LowBitFormat,
    hessian: torch.Tensor,
    output_side: torch.Tensor | None,
    sweeps: int,
) -> QuantizedMatrix:
    """By GPTQ and sweeps, in any format but w8. weights: (rows, columns) finite.

    hessian: (columns, columns), output_side: (rows, rows), both float32 and damped.
    """
    begin, improve = (_along_trellises, refine_paths) if low_bit.is_trellis else (_on_grid, refine)
    start, choose = begin(weights, low_bit, hessian)
    if output_side is None:
        return improve(weights, hessian, choose(weights, start), sweeps)
    return quantize_two_sided(
        weights,
        start,
        output_side,
        choose,
        lambda wanted, matrix: improve(wanted, hessian, matrix, 1),
        sweeps,
    )


def _on_grid(
    weights: torch.Tensor, low_bit: LowBitFormat, hessian: torch.Tensor
) -> tuple[QuantizedMatrix, ChooseRows]:
    """First scales and zeros, and what chooses codes in them."""
    grid, feedback = search_grid(weights, low_bit, hessian.diagonal()), order_and_factor(hessian)

    def choose(left: torch.Tensor, matrix: QuantizedMatrix) -> QuantizedMatrix:
        own = grid_of(matrix)
        return own.with_codes(choose_codes(left, feedback, low_bit, own.steps, own.shifts))

    return grid.with_codes(torch.zeros(weights.shape, dtype=torch.uint8)), choose


def _along_trellises(
    weights: torch.Tensor, low_bit: LowBitFormat, hessian: torch.Tensor
) -> tuple[QuantizedMatrix, ChooseRows]:
    """The same in w2t, which has no zeros."""
    feedback = ring_order_and_factor(hessian)
    scales, row_scales = trellis_scales(weights.float(), low_bit, hessian.diagonal())
    none_yet = torch.zeros(weights.shape, dtype=torch.uint8)

    def choose(left: torch.Tensor, matrix: QuantizedMatrix) -> QuantizedMatrix:
        codes = choose_paths(left, feedback, low_bit.group_size, steps_of(matrix))
        return dataclasses.replace(matrix, codes=codes)

    return QuantizedMatrix(low_bit, none_yet, scales, None, row_scales), choose
