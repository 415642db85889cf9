"""Quantizes and packs a matrix as compressed-tensors stores it: `pack-quantized`, with groups of columns.

A weight is `scale * (code - zero)`: signed codes of 4 or 8 bits, a bfloat16 scale for each group of a row,
and in asymmetric formats a signed zero; in symmetric ones it is 0. Facts: compressed-tensors 0.20.1,
compressors/pack_quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CompressMethod = Literal["rtn", "clip"]
# Shares of a group's range that are tried; rounding to nearest has the whole range.
_FACTORS = {"rtn": (1.0,), "clip": tuple(1.0 - 0.05 * step for step in range(13))}
_LEAST_STEP = 2.0**-100  # of a group of zeros: a normal number in bfloat16
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class GroupedFormat:
    """bits: of a code; group_size: columns that share a scale."""

    bits: Literal[4, 8]
    group_size: int
    is_symmetric: bool = True

    @property
    def lowest(self) -> int:
        """Codes go from this to -1 - this."""
        return -(1 << self.bits - 1)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The names of a matrix's tensors behind its module's."""
        names = ("weight_packed", "weight_scale", "weight_shape")
        return names if self.is_symmetric else (*names, "weight_zero_point")

    @property
    def nominal_bits(self) -> float:
        """Of a weight, with its share of a group's scale and zero."""
        return self.bits + (16 + (0 if self.is_symmetric else self.bits)) / self.group_size

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of each tensor of a matrix, by suffix."""
        groups = columns // self.group_size
        found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "weight_packed": (torch.int32, (rows, self._words(columns))),
            "weight_scale": (torch.bfloat16, (rows, groups)),
            "weight_shape": (torch.int64, (2,)),
            "weight_zero_point": (torch.int32, (self._words(rows), groups)),
        }
        return {suffix: found[suffix] for suffix in self.suffixes}

    def _words(self, count: int) -> int:
        return -(-count * self.bits // _WORD_BITS)


@dataclass(frozen=True, slots=True)
class CompressedMatrix:
    """codes: (rows, columns) int8; scales: (rows, groups) bfloat16; zeros: (rows, groups) int8 or None."""

    form: GroupedFormat
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    def dequantized(self) -> Tensor:
        """(rows, columns) bfloat16, to the bit what compressed-tensors makes of it."""
        centred = self.codes.float()
        if self.zeros is not None:
            centred -= _per_column(self.zeros.float(), self.form)
        # A product of two such numbers is exact in float32, and rounded once.
        return (centred * _per_column(self.scales.float(), self.form)).bfloat16()

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by suffix."""
        bits = self.form.bits
        stored = {
            "weight_packed": _pack(self.codes, bits),
            "weight_scale": self.scales.contiguous(),
            "weight_shape": torch.tensor(self.codes.shape),
        }
        if self.zeros is not None:
            stored["weight_zero_point"] = _pack(self.zeros.t(), bits).t().contiguous()
        return stored

    def rows(self, start: int, stop: int) -> CompressedMatrix:
        """Some of its rows, as a matrix of their own."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return CompressedMatrix(self.form, self.codes[start:stop], self.scales[start:stop], zeros)

    @classmethod
    def of_tensors(cls, form: GroupedFormat, stored: dict[str, Tensor]) -> CompressedMatrix:
        """The inverse of `tensors`."""
        rows, columns = stored["weight_shape"].tolist()
        zeros = None
        if not form.is_symmetric:
            zeros = _unpack(stored["weight_zero_point"].t(), form.bits, rows).t()
        return cls(form, _unpack(stored["weight_packed"], form.bits, columns), stored["weight_scale"], zeros)


@dataclass(frozen=True, slots=True)
class CompressedGrid:
    """The values that codes can stand for. steps, zeros: (rows, groups) float32; codes are signed."""

    form: GroupedFormat
    steps: Tensor
    zeros: Tensor

    def with_codes(self, codes: Tensor) -> CompressedMatrix:
        """The matrix of these signed codes, (rows, columns)."""
        zeros = None if self.form.is_symmetric else self.zeros.char()
        return CompressedMatrix(self.form, codes.char(), self.steps.bfloat16(), zeros)

    def rounded(self, weights: Tensor) -> CompressedMatrix:
        """Each weight, (rows, columns), at the nearest code."""
        return self.with_codes(_nearest(weights, self))


def compress(weights: Tensor, form: GroupedFormat, method: CompressMethod = "rtn") -> CompressedMatrix:
    """weights: (rows, columns) finite floats; columns a multiple of the group size."""
    exact = weights.float()
    return find_grid(exact, form, _FACTORS[method]).rounded(exact)


def find_grid(
    weights: Tensor,
    form: GroupedFormat,
    factors: tuple[float, ...] = _FACTORS["clip"],
    importance: Tensor | None = None,
) -> CompressedGrid:
    """Of the ranges times `factors`, for each group the one with the least squared error.

    weights: (rows, columns) float32; importance: (columns,), by default equal.
    """
    assert weights.shape[1] % form.group_size == 0, (weights.shape, form)
    groups = weights.unflatten(1, (-1, form.group_size))  # (rows, groups, group_size)
    matters = torch.ones(weights.shape[1]) if importance is None else importance
    best: CompressedGrid | None = None
    least = torch.empty(0)
    for factor in factors:
        grid = _grid_of_range(groups, form, factor)
        error = (weights - _values(_nearest(weights, grid), grid)).square_().mul_(matters)
        lost = error.unflatten(1, (-1, form.group_size)).sum(-1)  # (rows, groups)
        if best is None:
            best, least = grid, lost
            continue
        better = lost < least
        best = CompressedGrid(
            form,
            torch.where(better, grid.steps, best.steps),
            torch.where(better, grid.zeros, best.zeros),
        )
        least = torch.where(better, lost, least)
    assert best is not None
    return best


def _grid_of_range(groups: Tensor, form: GroupedFormat, factor: float) -> CompressedGrid:
    """The grid of each group's range times `factor`. groups: (rows, groups, group_size)."""
    codes = (1 << form.bits) - 1
    if form.is_symmetric:
        steps = _to_steps(groups.abs().amax(-1) * (factor * 2 / codes))
        return CompressedGrid(form, steps, torch.zeros_like(steps))
    low, high = groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)
    steps = _to_steps((high - low) * (factor / codes))
    zeros = ((-low * factor / steps).round() + form.lowest).clamp(form.lowest, -1 - form.lowest)
    return CompressedGrid(form, steps, zeros)


def _to_steps(values: Tensor) -> Tensor:
    """As bfloat16 holds them, and never zero: weights are divided by them."""
    return values.clamp(min=_LEAST_STEP).bfloat16().float()


def _nearest(weights: Tensor, grid: CompressedGrid) -> Tensor:
    """The signed code nearest to each weight, (rows, columns) float32."""
    in_steps = weights / _per_column(grid.steps, grid.form) + _per_column(grid.zeros, grid.form)
    return in_steps.round_().clamp_(grid.form.lowest, -1 - grid.form.lowest)


def _values(codes: Tensor, grid: CompressedGrid) -> Tensor:
    return (codes - _per_column(grid.zeros, grid.form)) * _per_column(grid.steps, grid.form)


def _per_column(values: Tensor, form: GroupedFormat) -> Tensor:
    """One number a group, (rows, groups), to one a column, (rows, columns)."""
    return values.repeat_interleave(form.group_size, dim=1)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """(rows, columns) int8 -> (rows, words) int32: unsigned codes, the first in the lowest bits."""
    per_word = _WORD_BITS // bits
    unsigned = codes.to(torch.int64) + (1 << bits - 1)
    padded = torch.nn.functional.pad(unsigned, (0, -codes.shape[1] % per_word))
    shifts = torch.arange(0, _WORD_BITS, bits)
    words: Tensor = (padded.unflatten(1, (-1, per_word)) << shifts).sum(-1)  # (rows, words)
    return words.to(torch.int32)


def _unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """The inverse: (rows, words) int32 -> (rows, count) int8."""
    shifts = torch.arange(0, _WORD_BITS, bits)
    unsigned: Tensor = (words.to(torch.int64)[:, :, None] >> shifts) & (
        (1 << bits) - 1
    )  # (rows, words, per_word)
    return (unsigned.flatten(1)[:, :count] - (1 << bits - 1)).to(torch.int8)
