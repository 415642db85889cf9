"""Searches scales and zeros of a matrix before its codes are known.

Clipping the range of a group loses its largest weights and makes every step smaller; the best range is found
by trying.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from ernie_local.packing import LowBitFormat, QuantizedMatrix
from ernie_local.packing.matrix import per_column
from ernie_local.packing.rounding import LEAST_SCALE, to_scales
from ernie_quant.native_steps import has_native_steps, run_native_step

Tensor = torch.Tensor
_FACTORS = tuple(1.0 - 0.05 * step for step in range(13))  # shares of the range, 1 to 0.4
_ROWS_AT_A_TIME = 128  # so that the candidates stay in the cache


@dataclass(frozen=True, slots=True)
class ScaleGrid:
    """The values that codes can represent: scales, zeros (rows, groups) uint8, row_scales (rows,) fp16."""

    low_bit: LowBitFormat
    scales: Tensor
    zeros: Tensor
    row_scales: Tensor

    @property
    def steps(self) -> Tensor:
        """Distance between two codes, (rows, groups) float32."""
        return self.scales.float() * self.row_scales.float()[:, None]

    @property
    def shifts(self) -> Tensor:
        """The code that means zero, which may be fractional, (rows, groups) float32."""
        return self.zeros.float() / self.low_bit.zero_divisor

    def with_codes(self, codes: Tensor) -> QuantizedMatrix:
        """The matrix of these codes, (rows, columns)."""
        return QuantizedMatrix(self.low_bit, codes.byte(), self.scales, self.zeros, self.row_scales)


def grid_of(matrix: QuantizedMatrix) -> ScaleGrid:
    """The grid of a matrix in an asymmetric format."""
    assert matrix.zeros is not None and matrix.row_scales is not None, matrix.low_bit.name  # noqa: PT018
    return ScaleGrid(matrix.low_bit, matrix.scales, matrix.zeros, matrix.row_scales)


def rows_of(matrix: QuantizedMatrix, rows: slice | Tensor) -> QuantizedMatrix:
    """The matrix of these rows; by ids, (rows,) int64, it is a copy."""
    zeros, row_scales = matrix.zeros, matrix.row_scales
    return QuantizedMatrix(
        matrix.low_bit,
        matrix.codes[rows],
        matrix.scales[rows],
        None if zeros is None else zeros[rows],
        None if row_scales is None else row_scales[rows],
    )


def round_to_grid(weights: Tensor, grid: ScaleGrid) -> QuantizedMatrix:
    """Round each weight, (rows, columns), to the nearest code."""
    columns = weights.shape[1]
    steps = per_column(grid.steps, grid.low_bit, columns)
    shifts = per_column(grid.shifts, grid.low_bit, columns)
    codes = (weights.float() / steps + shifts).round_().clamp_(0, grid.low_bit.highest_code)
    return grid.with_codes(codes)


def search_grid(weights: Tensor, low_bit: LowBitFormat, importance: Tensor | None = None) -> ScaleGrid:
    """The clipped ranges with the least squared error, each column's weighted by `importance`.

    weights: (rows, columns) finite floats; low_bit: an asymmetric format; importance: (columns,), the
    diagonal of the second moments, by default equal.
    """
    assert low_bit.has_zeros, low_bit.name
    columns = weights.shape[1]
    matters = torch.ones(columns) if importance is None else importance.float().contiguous()
    if has_native_steps():
        return _search_native(weights.float().t().contiguous(), low_bit, matters)
    padding = -columns % low_bit.group_size
    matters = functional.pad(matters, (0, padding)).view(-1, low_bit.group_size)
    padded = functional.pad(weights.float(), (0, padding)).unflatten(1, (-1, low_bit.group_size))
    parts = [_search_rows(groups, low_bit, matters) for groups in padded.split(_ROWS_AT_A_TIME)]
    scales, zeros, row_scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return ScaleGrid(low_bit, scales, zeros, row_scales)


def _search_native(columns: Tensor, low_bit: LowBitFormat, matters: Tensor) -> ScaleGrid:
    """As `_search_rows`, without temporaries. columns: (columns, rows); matters: (columns,); both float32."""
    steps = torch.empty(low_bit.num_groups(columns.shape[0]), columns.shape[1])
    shifts = torch.empty_like(steps)
    run_native_step("search_ranges", columns, low_bit.format_id, matters, LEAST_SCALE, steps, shifts)
    row_scales = to_scales(steps.amax(0) / low_bit.highest_scale)
    scales = torch.empty(steps.shape, dtype=torch.uint8)
    zeros = torch.empty_like(scales)
    found = steps, shifts, row_scales.float(), scales, zeros
    run_native_step("choose_whole", columns, low_bit.format_id, matters, *found)
    return ScaleGrid(low_bit, scales.t().contiguous(), zeros.t().contiguous(), row_scales)


def _search_rows(groups: Tensor, low_bit: LowBitFormat, matters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """groups: (rows, groups, group_size), padded with zeros of no importance."""
    low = groups.amin(-1).clamp(max=0.0)  # (rows, groups)
    high = groups.amax(-1).clamp(min=0.0)
    least = torch.full_like(low, torch.inf)
    best_step, best_shift = torch.empty_like(low), torch.empty_like(low)
    for factor in _FACTORS:
        step = ((high - low) * (factor / low_bit.highest_code)).clamp_(min=LEAST_SCALE)
        shift = -low * factor / step
        error = _error(groups, low_bit, matters, step, shift)
        better = error < least
        least = torch.where(better, error, least)
        best_step = torch.where(better, step, best_step)
        best_shift = torch.where(better, shift, best_shift)
    row_scales = to_scales(best_step.amax(-1) / low_bit.highest_scale)
    row_steps = row_scales.float()[:, None]
    best_scale, best_zero = best_whole_pair(
        low_bit,
        best_step / row_steps,
        lambda _: best_shift * low_bit.zero_divisor,
        lambda scale, zero: _error(groups, low_bit, matters, scale * row_steps, zero / low_bit.zero_divisor),
        start=(torch.empty_like(low), torch.empty_like(low), torch.full_like(low, torch.inf)),
    )
    return best_scale.byte(), best_zero.byte(), row_scales


def best_whole_pair(
    low_bit: LowBitFormat,
    wanted_scale: Tensor,
    wanted_zero: Callable[[Tensor], Tensor],
    cost: Callable[[Tensor, Tensor], Tensor],
    start: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Try the integer scales and zeros on both sides of the wanted ones; the nearest is often not the best.

    wanted_zero: of an integer scale. cost: of a pair, elementwise. start: a pair and its cost, to be beaten.
    """
    best_scale, best_zero, least = start
    for scale in (wanted_scale.floor(), wanted_scale.ceil()):
        scale.clamp_(1, low_bit.highest_scale)
        exact_zero = wanted_zero(scale)
        for zero in (exact_zero.floor(), exact_zero.ceil()):
            zero.clamp_(0, low_bit.highest_zero)
            error = cost(scale, zero)
            better = error < least
            least = torch.where(better, error, least)
            best_scale = torch.where(better, scale, best_scale)
            best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _error(groups: Tensor, low_bit: LowBitFormat, matters: Tensor, step: Tensor, shift: Tensor) -> Tensor:
    """Weighted squared error of each group, (rows, groups), with each weight at the nearest code."""
    in_steps = (groups / step[..., None]).add_(shift[..., None])
    codes = in_steps.round().clamp_(0, low_bit.highest_code)
    away = in_steps.sub_(codes).square_().mul_(matters)
    return away.sum(-1).mul_(step.square())
