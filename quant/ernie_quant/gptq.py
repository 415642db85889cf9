"""Chooses codes column by column; later columns compensate for the error of each column.

GPTQ (Frantar, Ashkboos, Hoefler, Alistarh, 2022, arXiv 2210.17323) on a grid that is fixed before (static
groups), so columns can be processed in order of importance (act-order) while groups stay contiguous.
"""

from __future__ import annotations

import torch

from ernie_local.packing import LowBitFormat, QuantizedMatrix
from ernie_quant import native_steps
from ernie_quant.grid import ScaleGrid
from ernie_quant.hessian import inverse_factor

Tensor = torch.Tensor


def gptq(weights: Tensor, hessian: Tensor, grid: ScaleGrid) -> QuantizedMatrix:
    """weights: (rows, columns); hessian: (columns, columns) float32, damped. The grid does not change."""
    low_bit = grid.low_bit
    order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(hessian[order][:, order]).contiguous()
    # Columns become rows of memory, as one is taken at a time.
    left = weights.float().t()[order].contiguous()  # (columns, rows)
    places = grid.steps.t().contiguous(), grid.shifts.t().contiguous()  # (groups, rows) each
    group_ids = order // low_bit.group_size
    codes = torch.empty(left.shape, dtype=torch.uint8)
    choose = native_steps.gptq_block if native_steps.has_native_steps() else _choose_block
    columns = left.shape[0]
    for start in range(0, columns, native_steps.BLOCK):
        stop = min(start + native_steps.BLOCK, columns)
        errors = choose(left, factor, group_ids, places, low_bit, slice(start, stop), codes)
        if stop < columns:
            left[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    back = torch.empty_like(codes)
    back[order] = codes
    return grid.with_codes(back.t().contiguous())


def _choose_block(
    left: Tensor,
    factor: Tensor,
    group_ids: Tensor,
    places: tuple[Tensor, Tensor],
    low_bit: LowBitFormat,
    block: slice,
    codes: Tensor,
) -> Tensor:
    """As native_steps.gptq_block; also changes `left` within the block."""
    steps, shifts = places
    errors = torch.empty(block.stop - block.start, left.shape[1])
    for column in range(block.start, block.stop):
        step, shift = steps[group_ids[column]], shifts[group_ids[column]]
        code = (left[column] / step).add_(shift).round_().clamp_(0, low_bit.highest_code)
        codes[column] = code
        error = errors[column - block.start]
        torch.sub(left[column], code.sub_(shift).mul_(step), out=error)
        error.div_(factor[column, column])
        if column + 1 < block.stop:
            left[column + 1 : block.stop].addr_(factor[column, column + 1 : block.stop], error, alpha=-1)
    return errors
