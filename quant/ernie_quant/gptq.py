"""Codes chosen column by column, each column's error made good by those after it.

GPTQ (Frantar, Ashkboos, Hoefler, Alistarh, 2022, arXiv 2210.17323) on a grid that is fixed before (static
groups), so columns can go in the order of their importance (act-order) while groups stay neighbours. Knows
one matrix, its second moments and its grid.
"""

from __future__ import annotations

import torch

from ernie_local.packing import QuantizedMatrix
from ernie_quant.grid import Grid
from ernie_quant.hessian import inverse_factor

Tensor = torch.Tensor
_BLOCK = 128  # columns whose errors are carried to the later ones in one product


def gptq(weights: Tensor, hessian: Tensor, grid: Grid) -> QuantizedMatrix:
    """weights: (rows, columns); hessian: (columns, columns) float32, damped. The grid is kept as it is."""
    low_bit = grid.low_bit
    order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(hessian[order][:, order])
    # Columns as rows of memory: the loop below takes one at a time.
    left = weights.float().t()[order].contiguous()  # (columns, rows)
    steps, shifts = grid.steps.t().contiguous(), grid.shifts.t().contiguous()  # (groups, rows)
    group_ids = (order // low_bit.group_size).tolist()
    codes = torch.empty(left.shape, dtype=torch.uint8)
    columns = left.shape[0]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.empty(stop - start, left.shape[1])
        for column in range(start, stop):
            step, shift = steps[group_ids[column]], shifts[group_ids[column]]
            code = (left[column] / step).add_(shift).round_().clamp_(0, low_bit.highest_code)
            codes[column] = code
            error = errors[column - start]
            torch.sub(left[column], code.sub_(shift).mul_(step), out=error)
            error.div_(factor[column, column])
            if column + 1 < stop:
                left[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
        if stop < columns:
            left[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    back = torch.empty_like(codes)
    back[order] = codes
    return grid.with_codes(back.t().contiguous())
