"""Rounds a matrix to nearest: the least and largest weight of each group become the ends of its range.

It needs no data and does no search. Every other method has to beat it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ernie_local.packing import LowBitFormat, QuantizedMatrix
from ernie_local.packing.matrix import per_column

LEAST_SCALE = 1e-12  # of a group of equal weights


def round_to_nearest(weights: Tensor, low_bit: LowBitFormat) -> QuantizedMatrix:
    """weights: (rows, columns) in any float dtype, finite. The last group may be smaller."""
    exact = weights.float()
    padded = functional.pad(exact, (0, -exact.shape[1] % low_bit.group_size), value=torch.nan)
    groups: Tensor = padded.unflatten(1, (-1, low_bit.group_size))  # (rows, groups, group_size)
    if low_bit.is_symmetric:
        return _symmetric(exact, groups, low_bit)
    # A range that holds zero: a zero point is a place between the codes' ends.
    low = groups.nan_to_num(nan=torch.inf).amin(-1).clamp(max=0.0)  # (rows, groups)
    high = groups.nan_to_num(nan=-torch.inf).amax(-1).clamp(min=0.0)
    wanted = ((high - low) / low_bit.highest_code).clamp(min=LEAST_SCALE)
    row_scales = to_scales(wanted.amax(-1) / low_bit.highest_scale)
    # Rounded up, so that the ends of the range stay inside.
    whole = (wanted / row_scales.float()[:, None]).ceil().clamp(1, low_bit.highest_scale)
    scales = whole * row_scales.float()[:, None]
    zeros = (-low / scales * low_bit.zero_divisor).round().clamp(0, low_bit.highest_zero)
    steps = per_column(scales, low_bit, exact.shape[1])
    shifts = per_column(zeros / low_bit.zero_divisor, low_bit, exact.shape[1])
    codes = (exact / steps + shifts).round().clamp(0, low_bit.highest_code)
    return QuantizedMatrix(low_bit, codes.byte(), whole.byte(), zeros.byte(), row_scales)


def to_scales(values: Tensor) -> Tensor:
    """As fp16 and never zero: codes are divided by them."""
    scales = values.half()
    return torch.where(scales > 0, scales, torch.finfo(torch.float16).smallest_normal)


def _symmetric(exact: Tensor, groups: Tensor, low_bit: LowBitFormat) -> QuantizedMatrix:
    scales = to_scales(groups.nan_to_num(nan=0.0).abs().amax(-1) / 127)
    steps = per_column(scales.float(), low_bit, exact.shape[1])
    codes = (exact / steps).round().clamp(-127, 127) + 128
    return QuantizedMatrix(low_bit, codes.byte(), scales, None, None)
