"""Rounds a matrix to nearest: the least and largest weight of each group become the ends of its range.

A trellis has no such ends: there a group's scale follows from its weights' mean square, and the nearest path
is taken. Rounding needs no data and does not search for scales. Every other method has to beat it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ernie_local.packing import LowBitFormat, QuantizedMatrix
from ernie_local.packing.formats import TRELLIS_SCALES
from ernie_local.packing.matrix import W8_ZERO, per_column
from ernie_local.packing.trellis import nearest_codes

LEAST_SCALE = 1e-12  # of a group of equal weights
LEAST_HALF = 2.0**-24  # the smallest fp16 that is not zero
# A level of w2t, as a share of the eighth root of the mean eighth power of a group's weights. The few largest
# weights say what a scale has to reach: by the root mean square a fifth more is lost where tails are heavy.
TRELLIS_STEP = 0.131


def round_to_nearest(weights: Tensor, low_bit: LowBitFormat) -> QuantizedMatrix:
    """weights: (rows, columns) in any float dtype, finite. The last group may be smaller."""
    exact = weights.float()
    padded = functional.pad(exact, (0, -exact.shape[1] % low_bit.group_size), value=torch.nan)
    groups: Tensor = padded.unflatten(1, (-1, low_bit.group_size))  # (rows, groups, group_size)
    if low_bit.has_fp16_scales:
        return _symmetric(exact, groups, low_bit)
    if low_bit.is_trellis:
        return _nearest_paths(exact, low_bit)
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
    return values.clamp(min=LEAST_HALF).half()


def _symmetric(exact: Tensor, groups: Tensor, low_bit: LowBitFormat) -> QuantizedMatrix:
    scales = to_scales(groups.nan_to_num(nan=0.0).abs().amax(-1) / 127)
    steps = per_column(scales.float(), low_bit, exact.shape[1])
    codes = (exact / steps).round().clamp(-127, 127) + W8_ZERO
    return QuantizedMatrix(low_bit, codes.byte(), scales, None, None)


def _nearest_paths(exact: Tensor, low_bit: LowBitFormat) -> QuantizedMatrix:
    scales, row_scales = trellis_scales(exact, low_bit)
    numbers = torch.tensor(TRELLIS_SCALES, dtype=torch.float32, device=exact.device)[scales.long()]
    steps = per_column(numbers * row_scales.float()[:, None], low_bit, exact.shape[1])
    codes = nearest_codes((exact / steps).where(steps > 0, 0), steps.square())
    return QuantizedMatrix(low_bit, codes, scales, None, row_scales)


def trellis_scales(
    weights: Tensor, low_bit: LowBitFormat, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scales of w2t that follow from the weights of each group: (rows, groups) uint8, and (rows,) fp16.

    weights: (rows, columns) float32; importance: (columns,), positive, by default equal.
    """
    matters = torch.ones(weights.shape[1], device=weights.device) if importance is None else importance
    padding = (0, -weights.shape[1] % low_bit.group_size)
    largest = weights.abs().amax(1, keepdim=True)
    shares = (weights / largest).nan_to_num(nan=0.0)  # eighth powers of small numbers are 0
    powers, counts = (
        functional.pad(one, padding).unflatten(-1, (-1, low_bit.group_size)).sum(-1)
        for one in (shares.pow(8) * matters, matters)
    )  # (rows, groups), (groups,)
    wanted = (powers / counts).pow(1 / 8) * largest * TRELLIS_STEP
    # No level means zero: where all weights are, or too small for fp16, the row's scale has to be.
    largest_step = wanted.amax(-1)
    row_scales = (largest_step / TRELLIS_SCALES[-1]).clamp(min=LEAST_HALF)
    # Levels twice as wide as wanted lose less than zeros.
    row_scales = row_scales.where(largest_step >= TRELLIS_SCALES[0] * LEAST_HALF / 2, 0.0).half()
    return nearest_scales(wanted, row_scales), row_scales


def nearest_scales(wanted: Tensor, row_scales: Tensor) -> Tensor:
    """Stored scales of w2t, (rows, groups) uint8, nearest by their ratio.

    wanted: (rows, groups) float32, steps of levels; row_scales: (rows,) fp16.
    """
    numbers = torch.tensor(TRELLIS_SCALES, dtype=torch.float32, device=wanted.device)
    between = (numbers[:-1] * numbers[1:]).sqrt()
    ratios = (wanted / row_scales.float()[:, None]).nan_to_num(nan=0.0)
    return torch.bucketize(ratios, between).byte()
