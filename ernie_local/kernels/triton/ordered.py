"""Activations made ready for tensor cores, with what they were divided by."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ernie_local.kernels.triton.plane_order import order_by_plane

# A row's columns are looked at so many at a time.
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Ordered:
    """numbers: (rows, block columns, blocks) in 16 bits; row_scales: (rows,) float32."""

    numbers: torch.Tensor
    row_scales: torch.Tensor


def ordered(rows: torch.Tensor, block_columns: int, dtype: torch.dtype) -> Ordered:
    """rows: (rows, columns) contiguous, any float; dtype: float16 or bfloat16."""
    num_rows, columns = rows.shape
    numbers = torch.empty(num_rows, block_columns, columns // block_columns, dtype=dtype, device=rows.device)
    row_scales = torch.empty(num_rows, dtype=torch.float32, device=rows.device)
    order_by_plane[(num_rows,)](
        rows, numbers, row_scales, COLUMNS=columns, BLOCK_COLUMNS=block_columns, AT_ONCE=_AT_ONCE
    )
    return Ordered(numbers, row_scales)
