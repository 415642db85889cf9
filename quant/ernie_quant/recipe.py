"""Defines the methods with their settings, and quantizes one matrix by one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ernie_local.errors import UsageError
from ernie_local.packing import LowBitFormat, QuantizedMatrix
from ernie_local.packing.rounding import round_to_nearest
from ernie_quant.gptq import gptq
from ernie_quant.grid import round_to_grid, search_grid
from ernie_quant.hessian import damped
from ernie_quant.refine import refine

QuantizationMethod = Literal["rtn", "clip", "gptq", "nf4", "quanto", "quanto-hqq"]
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
    weights: torch.Tensor, low_bit: LowBitFormat, recipe: Recipe, moments: torch.Tensor | None = None
) -> QuantizedMatrix:
    """weights: (rows, columns) finite; moments: (columns, columns) of its inputs, which only `gptq` needs.

    Symmetric formats (w8) are always rounded to nearest: their error is far below that of the others. Other
    libraries' methods have formats of their own (foreign.py); for our formats they mean `clip`.
    """
    if recipe.method == "rtn" or low_bit.is_symmetric:
        return round_to_nearest(weights, low_bit)
    if recipe.method != "gptq":
        return round_to_grid(weights, search_grid(weights, low_bit))
    assert moments is not None, recipe.method
    hessian = damped(moments)
    grid = search_grid(weights, low_bit, hessian.diagonal())
    return refine(weights, hessian, gptq(weights, hessian, grid), recipe.sweeps)
