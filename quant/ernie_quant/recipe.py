"""How matrices are quantized: the method with its settings, and one matrix by it.

Knows one matrix at a time; where second moments come from is expert.py's.
"""

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

Method = Literal["rtn", "clip", "gptq", "nf4", "quanto", "quanto-hqq"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class Recipe:
    """`gptq` needs second moments; `clip`, `rtn` and other libraries' methods look at weights alone.

    shrinkage: for how many tokens, in multiples of a matrix's columns, the bank's moments count beside an
    expert's own. sweeps: of refinement after GPTQ. square_weights: count a token by its squared router
    weight, as its output is multiplied with it, instead of once.
    """

    method: Method = "gptq"
    shrinkage: float = 1.0
    sweeps: int = 2
    square_weights: bool = True

    def __post_init__(self) -> None:
        """Raise UsageError for a method or number that means nothing."""
        if self.method not in METHODS:
            raise UsageError(
                f"there is no method {self.method!r}",
                f"the methods are {', '.join(METHODS)}",
                "use gptq, or rtn for a quick checkpoint without calibration",
            )
        if self.shrinkage < 0 or self.sweeps < 0:
            raise UsageError(
                f"shrinkage {self.shrinkage} and {self.sweeps} sweeps, neither can be below 0",
                "they say how much the bank counts, and how often a matrix is gone over",
                "leave them out: 1.0 and 2 were measured to be good",
            )


def quantize_matrix(
    weights: torch.Tensor, low_bit: LowBitFormat, recipe: Recipe, moments: torch.Tensor | None = None
) -> QuantizedMatrix:
    """weights: (rows, columns) finite; moments: (columns, columns) of its inputs, needed by `gptq` alone.

    Symmetric formats (w8) are rounded to nearest whatever the method: their error is far below the others'.
    Other libraries' methods have formats of their own (foreign.py); in ours they mean `clip`.
    """
    if recipe.method == "rtn" or low_bit.is_symmetric:
        return round_to_nearest(weights, low_bit)
    if recipe.method != "gptq":
        return round_to_grid(weights, search_grid(weights, low_bit))
    assert moments is not None, recipe.method
    hessian = damped(moments)
    grid = search_grid(weights, low_bit, hessian.diagonal())
    return refine(weights, hessian, gptq(weights, hessian, grid), recipe.sweeps)
