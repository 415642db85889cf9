"""Activations made ready for tensor cores: 16 bits, columns in the order of the codes' bits, no overflow.

A product of blocks takes one code of every block at a time; so the same column of all blocks lies together
here. A row whose numbers could leave float16's range is halved first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ernie_local.kernels.triton.halvings import halvings_below_32768


@triton.jit
def order_by_plane(
    rows: tl.tensor,
    ordered: tl.tensor,
    row_scales: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
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
