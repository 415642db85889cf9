"""Calls the compiled inner loops of choosing codes (csrc/quantize_kernel.hpp) on torch tensors.

Each has a plain torch version beside its caller (grid.py, gptq.py, refine.py), for tests and for machines
without a compiler. Matrices are transposed: a column is a row of memory.
"""

from __future__ import annotations

import torch

from ernie_local.kernels.native import native_module, warn_without_native
from ernie_local.kernels.operators import ready_module
from ernie_local.packing import LowBitFormat

Tensor = torch.Tensor
BLOCK = 128  # columns that are processed before all others are updated; the limit of the kernels


def has_native_steps() -> bool:
    """Whether they can be used; warns once if not."""
    if ready_module() is None:
        warn_without_native()
        return False
    return True


def search_ranges(
    columns: Tensor, low_bit: LowBitFormat, matters: Tensor, least_scale: float
) -> tuple[Tensor, Tensor]:
    """The clipped range of least error of each group, as its step and the code that means zero.

    columns: (columns, rows); matters: (columns,), both float32 -> (groups, rows) each.
    """
    steps = torch.empty(low_bit.num_groups(columns.shape[0]), columns.shape[1])
    shifts = torch.empty_like(steps)
    native = native_module()
    assert native is not None
    is_done = native.search_ranges(columns, low_bit.format_id, matters, least_scale, steps, shifts)
    assert is_done, (columns.shape, low_bit.name)
    return steps, shifts


def choose_whole(
    columns: Tensor, low_bit: LowBitFormat, matters: Tensor, ranges: tuple[Tensor, Tensor], row_steps: Tensor
) -> tuple[Tensor, Tensor]:
    """Whole scales and zeros around `ranges`, (groups, rows) uint8 each.

    ranges: of `search_ranges`; row_steps: (rows,), the value of scale 1 in each row.
    """
    scales = torch.empty(ranges[0].shape, dtype=torch.uint8)
    zeros = torch.empty_like(scales)
    native = native_module()
    assert native is not None
    is_done = native.choose_whole(columns, low_bit.format_id, matters, *ranges, row_steps, scales, zeros)
    assert is_done, (columns.shape, low_bit.name)
    return scales, zeros


def gptq_block(
    left: Tensor,
    factor: Tensor,
    group_ids: Tensor,
    grid: tuple[Tensor, Tensor],
    low_bit: LowBitFormat,
    block: slice,
    codes: Tensor,
) -> Tensor:
    """Write the codes of the block's columns to `codes`; their errors over the factor's diagonal.

    left: (columns, rows) in the order of the work; factor: (columns, columns); group_ids: (columns,) int64;
    grid: steps and shifts, (groups, rows); codes: (columns, rows) uint8 -> (block, rows).
    """
    errors = torch.empty(block.stop - block.start, left.shape[1])
    native = native_module()
    assert native is not None
    is_done = native.gptq_block(
        left, factor, group_ids, *grid, low_bit.format_id, block.start, block.stop, codes, errors
    )
    assert is_done, (left.shape, low_bit.name, block)
    return errors


def refine_block(
    hessian: Tensor,
    pull: Tensor,
    row_scales: Tensor,
    low_bit: LowBitFormat,
    block: slice,
    numbers: tuple[Tensor, Tensor, Tensor],
    *,
    with_codes: bool,
    with_scales: bool,
) -> Tensor:
    """Refine the block's groups in turn, in place; the changes of their values, (block, rows).

    hessian: (columns, columns); pull: (columns, rows); row_scales: (rows,), all float32; numbers: codes
    (columns, rows), scales and zeros (groups, rows), uint8.
    """
    change = torch.empty(block.stop - block.start, pull.shape[1])
    native = native_module()
    assert native is not None
    is_done = native.refine_block(
        hessian,
        pull,
        row_scales,
        low_bit.format_id,
        block.start,
        block.stop,
        with_codes,
        with_scales,
        *numbers,
        change,
    )
    assert is_done, (pull.shape, low_bit.name, block)
    return change
