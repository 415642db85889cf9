"""Makes activations ready for tensor cores: 16 bits, columns in the order of the codes' bits, no overflow.

A product of blocks takes one code of every block at a time; so the same column of all blocks lies together
here. A row whose numbers could leave float16's range is halved as often as it takes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def halvings_below_32768(largest):
    """Two float32 of largest's shape: powers of two to multiply numbers with before, and their product after.

    largest: float32, not negative, the largest size of a number in the row; 1 and 1 where it is below 2^15.
    """
    exponent = largest.to(tl.int32, bitcast=True) >> 23  # of a float32 it is biased by 127
    halvings = tl.maximum(exponent - (127 + 14), 0)
    before = ((127 - halvings) << 23).to(tl.float32, bitcast=True)
    after = ((127 + halvings) << 23).to(tl.float32, bitcast=True)
    return before, after


@triton.jit
def order_by_plane(
    rows, ordered, row_scales, COLUMNS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, AT_ONCE: tl.constexpr
):
    """Program (row,). rows: (rows, COLUMNS) of any float; ordered: (rows, BLOCK_COLUMNS, blocks), 16 bits.

    row_scales: (rows,) float32, what a product has to be multiplied with.
    """
    BLOCKS: tl.constexpr = COLUMNS // BLOCK_COLUMNS
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([AT_ONCE], tl.float32)
    for start in range(0, COLUMNS, AT_ONCE):
        at = start + tl.arange(0, AT_ONCE)
        numbers = tl.load(rows + row * COLUMNS + at, mask=at < COLUMNS, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(numbers))
    factor, row_scale = halvings_below_32768(tl.max(largest, axis=0))
    tl.store(row_scales + row, row_scale)
    for start in range(0, COLUMNS, AT_ONCE):
        at = start + tl.arange(0, AT_ONCE)
        column = at % BLOCKS * BLOCK_COLUMNS + at // BLOCKS
        numbers = tl.load(rows + row * COLUMNS + column, mask=at < COLUMNS, other=0.0).to(tl.float32)
        tl.store(
            ordered + row * COLUMNS + at, (numbers * factor).to(ordered.dtype.element_ty), mask=at < COLUMNS
        )


# Columns of a row that are read at a time.
_AT_ONCE = 1024


class Ordered(NamedTuple):
    """Rows as `multiply_many` takes them."""

    numbers: Tensor  # (rows, block columns, blocks) in 16 bits
    row_scales: Tensor  # (rows,) float32


def ordered(rows: Tensor, block_columns: int, dtype: torch.dtype) -> Ordered:
    """rows: (rows, columns) contiguous, any float; dtype: float16 or bfloat16."""
    num_rows, columns = rows.shape
    numbers = torch.empty(num_rows, block_columns, columns // block_columns, dtype=dtype, device=rows.device)
    row_scales = torch.empty(num_rows, dtype=torch.float32, device=rows.device)
    order_by_plane[(num_rows,)](
        rows, numbers, row_scales, COLUMNS=columns, BLOCK_COLUMNS=block_columns, AT_ONCE=_AT_ONCE
    )
    return Ordered(numbers, row_scales)
