"""Chooses codes column by column; later columns compensate for the error of each column.

GPTQ (Frantar, Ashkboos, Hoefler, Alistarh, 2022, arXiv 2210.17323) on a grid that is fixed before (static
groups), so columns can be processed in order of importance (act-order) while groups stay contiguous.
"""

from __future__ import annotations

import torch

from ernie_local.packing import LowBitFormat, QuantizedMatrix
from ernie_quant.grid import ScaleGrid
from ernie_quant.hessian import inverse_factor
from ernie_quant.native_steps import BLOCK, has_native_steps, run_native_step

Tensor = torch.Tensor


def gptq(weights: Tensor, hessian: Tensor, grid: ScaleGrid) -> QuantizedMatrix:
    """weights: (rows, columns); hessian: (columns, columns) float32, damped. The grid does not change."""
    return grid.with_codes(
        choose_codes(weights, order_and_factor(hessian), grid.low_bit, grid.steps, grid.shifts)
    )


def order_and_factor(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """The columns from the most important one on, and how the error of each goes to later ones.

    hessian: (columns, columns), damped -> (columns,) int64 and, in that order, (columns, columns).
    """
    order = hessian.diagonal().argsort(descending=True, stable=True)
    return order, inverse_factor(hessian[order][:, order]).contiguous()


def choose_codes(
    weights: Tensor,
    feedback: tuple[Tensor, Tensor],
    low_bit: LowBitFormat,
    steps: Tensor,
    shifts: Tensor,
) -> Tensor:
    """The codes, (rows, columns) uint8, on a grid of steps and shifts, (rows, groups) float32 each.

    feedback: of `order_and_factor`; low_bit: whose range of codes and size of groups these are.
    """
    order, factor = feedback
    # Columns become rows of memory, as one is taken at a time.
    left = weights.float().t()[order].contiguous()  # (columns, rows)
    places = steps.t().contiguous(), shifts.t().contiguous()  # (groups, rows) each
    group_ids = order // low_bit.group_size
    codes = torch.empty(left.shape, dtype=torch.uint8)
    is_native = has_native_steps()
    columns, rows = left.shape
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.empty(stop - start, rows)  # over the factor's diagonal
        if is_native:
            run_native_step(
                "gptq_block", left, factor, group_ids, *places, low_bit.format_id, start, stop, codes, errors
            )
        else:
            _choose_block(left, factor, group_ids, places, low_bit, slice(start, stop), codes, errors)
        if stop < columns:
            left[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    back = torch.empty_like(codes)
    back[order] = codes
    return back.t().contiguous()


def _choose_block(
    left: Tensor,
    factor: Tensor,
    group_ids: Tensor,
    places: tuple[Tensor, Tensor],
    low_bit: LowBitFormat,
    block: slice,
    codes: Tensor,
    errors: Tensor,
) -> None:
    """Write the codes of the block's columns to `codes`, and their errors to `errors`.

    left: (columns, rows) in the order of the work, changed within the block; factor: (columns, columns);
    group_ids: (columns,) int64; places: steps and shifts, (groups, rows) each; errors: (block, rows).
    """
    steps, shifts = places
    for column, error in enumerate(errors, block.start):
        step, shift = steps[group_ids[column]], shifts[group_ids[column]]
        code = (left[column] / step).add_(shift).round_().clamp_(0, low_bit.highest_code)
        codes[column] = code
        torch.sub(left[column], code.sub_(shift).mul_(step), out=error)
        error.div_(factor[column, column])
        if column + 1 < block.stop:
            left[column + 1 : block.stop].addr_(factor[column, column + 1 : block.stop], error, alpha=-1)
