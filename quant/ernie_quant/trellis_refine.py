"""Improves a matrix of w2t in small steps: stretches of its trellises, the scales of groups, those of rows.

Coordinate descent on trace(E H E^T), as in refine.py. A stretch is searched anew while all else stays, its
ends included, and kept where it is better; each scale becomes the best of all that a group can have. So the
error never grows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ernie_local.packing import LowBitFormat, QuantizedMatrix, dequantize
from ernie_local.packing.formats import TRELLIS_SCALES, TRELLIS_STRIDE, TRELLIS_ZERO
from ernie_local.packing.matrix import numbers_of_scales
from ernie_local.packing.trellis import MEMORY, levels_of
from ernie_quant.hessian import inverse_factor
from ernie_quant.native_steps import BLOCK, has_native_steps, run_native_step
from ernie_quant.trellis_gptq import (
    LONGEST_RING,
    Stretch,
    levels_behind,
    states_before,
)

Tensor = torch.Tensor
_STRETCH = 24  # columns that are searched together at most: kLongestStretch in csrc/kernel_table.hpp


def refine_paths(weights: Tensor, hessian: Tensor, matrix: QuantizedMatrix, sweeps: int) -> QuantizedMatrix:
    """`matrix`, of w2t, with better scales, and after `sweeps` over its codes, then its scales again.

    weights: (rows, columns), the exact ones; hessian: (columns, columns) float32.
    """
    descent = _Descent.of(weights, hessian, matrix)
    descent.fit_groups()
    descent.fit_rows()
    for sweep in range(sweeps):
        descent.search_anew(sweep)
        descent.fit_groups()
        descent.fit_rows()
    return descent.matrix()


def steps_of(matrix: QuantizedMatrix) -> Tensor:
    """What a level of each group is, (rows, groups) float32."""
    assert matrix.row_scales is not None, matrix.low_bit.name
    return numbers_of_scales(matrix) * matrix.row_scales.float()[:, None]


@dataclass(slots=True)
class _Descent:
    """A matrix on its way, a column a row of memory, and what each step needs of H W and H Q.

    wanted: H W, pull: H (W - Q), the direction that reduces the error, (columns, rows) both. codes, levels
    less the zero: (columns, rows); scales: (groups, rows); row_scales: (rows,) float32 that fp16 can hold.
    """

    low_bit: LowBitFormat
    hessian: Tensor
    wanted: Tensor
    pull: Tensor
    codes: Tensor
    levels: Tensor
    scales: Tensor
    row_scales: Tensor

    @classmethod
    def of(cls, weights: Tensor, hessian: Tensor, matrix: QuantizedMatrix) -> _Descent:
        assert matrix.row_scales is not None, matrix.low_bit.name
        codes = matrix.codes.t().contiguous()
        wanted = hessian @ weights.float().t()
        pull = wanted - hessian @ dequantize(matrix).t()
        scales = matrix.scales.t().contiguous()
        return cls(
            matrix.low_bit,
            hessian,
            wanted,
            pull,
            codes,
            _levels_less_zero(codes),
            scales,
            matrix.row_scales.float(),
        )

    def matrix(self) -> QuantizedMatrix:
        return QuantizedMatrix(
            self.low_bit,
            self.codes.t().contiguous(),
            self.scales.t().contiguous(),
            None,
            self.row_scales.half(),
        )

    def _steps(self) -> Tensor:
        """(groups, rows)"""
        return torch.tensor(TRELLIS_SCALES, dtype=torch.float32)[self.scales.long()] * self.row_scales

    def fit_groups(self) -> None:
        """Take the best scale of each group in turn; codes stay."""
        size = self.low_bit.group_size
        is_native = has_native_steps()
        for start in range(0, len(self.levels), BLOCK):
            block = slice(start, min(start + BLOCK, len(self.levels)))
            own = self.hessian[block, block].contiguous()
            groups = self.scales[start // size : -(-block.stop // size)]
            change = torch.empty_like(self.levels[block])
            read = own, self.levels[block], self.pull[block], self.row_scales
            if is_native:
                run_native_step("refit_scales", *read, size, groups, change)
            else:
                _refit_block(*read, size, groups, change)
            self.pull.addmm_(self.hessian[:, block], change, alpha=-1)

    def fit_rows(self) -> None:
        """Take the row scales of least error; where rounding to fp16 makes one worse, it stays."""
        group_ids = torch.arange(len(self.levels)) // self.low_bit.group_size
        values = self._steps()[group_ids].mul_(self.levels)
        moved = self.wanted - self.pull  # H Q
        squared, linear = (moved * values).sum(0), (self.wanted * values).sum(0)  # (rows,)
        before = self.row_scales
        best = (before * (linear / squared)).nan_to_num(nan=0.0, posinf=0.0).half().float()
        # The error is a parabola in the factor on the row.
        factor = (best / before).nan_to_num(nan=1.0, posinf=1.0)
        better = (best > 0) & (factor * (factor * squared - 2 * linear) < squared - 2 * linear)
        self.row_scales = torch.where(better, best, before)
        torch.sub(self.wanted, moved.mul_(torch.where(better, factor, 1.0)), out=self.pull)

    def search_anew(self, sweep: int) -> None:
        """Choose the codes of each stretch anew."""
        steps = self._steps()
        is_native = has_native_steps()
        for block in _blocks(len(self.codes), sweep):
            coupling = self.hessian[block.columns]  # (block, columns)
            own = coupling[:, block.columns]
            parts = [slice(at, at + block.stretch) for at in range(0, len(own), block.stretch)]
            factors = torch.stack(
                [inverse_factor(own[part, part]) for part in parts]
            )  # (stretches, size, size)
            inverses = factors.mT @ factors
            own_steps = steps[block.columns // self.low_bit.group_size]
            chosen, change = self.codes[block.columns], torch.empty_like(own_steps)
            states = block.states(self.codes)
            read = own, inverses, factors, self.pull[block.columns], own_steps, states, block.is_ring
            if is_native:
                run_native_step("decide_block", *read, chosen, change)
            else:
                _decide_block(*read, chosen, change)
            self.codes[block.columns] = chosen
            self.pull.addmm_(coupling.t(), change, alpha=-1)
        self.levels = _levels_less_zero(self.codes)


def _levels_less_zero(codes: Tensor) -> Tensor:
    """codes: (columns, rows) -> float32."""
    return (levels_of(codes.t()).float() - TRELLIS_ZERO).t().contiguous()


def _refit_block(
    own: Tensor, levels: Tensor, pull: Tensor, row_scales: Tensor, size: int, scales: Tensor, change: Tensor
) -> None:
    """Choose the scales of a block's groups, (groups, rows); write changes of its values, (block, rows)."""
    steps = torch.tensor(TRELLIS_SCALES)[:, None] * row_scales  # (numbers, rows)
    change.zero_()
    for group, scale in enumerate(scales):
        columns = slice(group * size, min((group + 1) * size, len(levels)))
        inside, level = own[columns, columns], levels[columns]
        present = steps.gather(0, scale.long()[None])[0]
        target = pull[columns] - own[columns] @ change + inside @ (level * present)
        squared, linear = (level * (inside @ level)).sum(0), (level * target).sum(0)
        costs = steps * (steps * squared - 2 * linear)  # (numbers, rows)
        best = costs.argmin(0)
        is_better = costs.amin(0) < present * (present * squared - 2 * linear)
        scale.copy_(torch.where(is_better, best, scale.long()))
        change[columns] = level * (steps.gather(0, scale.long()[None])[0] - present)


@dataclass(frozen=True, slots=True)
class _Block:
    """Stretches of one length, one after the other, that are searched before all other columns hear of it."""

    columns: Tensor  # of the matrix, (block,)
    stretch: int
    is_ring: bool  # whether each stretch is a whole ring
    starts: list[tuple[int, int]]  # of each stretch, its ring and the place in it

    def states(self, codes: Tensor) -> Tensor:
        """Before each stretch, (stretches, rows) uint8. codes: (columns, rows)."""
        befores = [states_before(codes[ring::TRELLIS_STRIDE], place) for ring, place in self.starts]
        return torch.stack(befores)


def _blocks(columns: int, sweep: int) -> Iterator[_Block]:
    """All columns, in stretches; in longer paths their ends lie elsewhere from sweep to sweep of one call."""
    length = columns // TRELLIS_STRIDE
    num_stretches = -(-length // _STRETCH)
    is_ring = length <= LONGEST_RING
    shift = 0 if is_ring else sweep * (_STRETCH // 2)
    edges = [part * length // num_stretches for part in range(num_stretches + 1)]
    by_size: dict[int, list[tuple[int, int]]] = {}
    for ring in range(TRELLIS_STRIDE):
        for start, stop in itertools.pairwise(edges):
            by_size.setdefault(stop - start, []).append((ring, (start + shift) % length))
    for size, starts in by_size.items():
        together = BLOCK // size
        for first in range(0, len(starts), together):
            some = starts[first : first + together]
            places = torch.tensor([place for _, place in some])[:, None] + torch.arange(size)
            rings = torch.tensor([ring for ring, _ in some])[:, None]
            yield _Block((places % length * TRELLIS_STRIDE + rings).flatten(), size, is_ring, some)


def _decide_block(
    own: Tensor,
    inverses: Tensor,
    factors: Tensor,
    pull: Tensor,
    steps: Tensor,
    states: Tensor,
    is_ring: bool,
    codes: Tensor,
    change: Tensor,
) -> None:
    """Search each stretch of a block anew; write its codes and changes of its values, (block, rows) each."""
    size = factors.shape[1]
    change.zero_()
    for part, (inverse, factor, state) in enumerate(zip(inverses, factors, states.long(), strict=True)):
        columns = slice(part * size, (part + 1) * size)
        before = levels_behind(codes[columns], state).mul_(steps[columns])
        # The least of the parabola in these columns.
        left = before + inverse @ (pull[columns] - own[columns] @ change)
        stretch = Stretch(left, steps[columns], factor)
        cost = stretch.errors(codes[columns], state).square().sum(0)
        if is_ring:
            found, least = stretch.search_ring()
            start = states_before(found, 0).long()
        else:
            end = state
            for code in codes[columns].long():
                end = (end | (code & 1) << MEMORY) >> 1
            (found, least, _), start = stretch.search(state, end), state
        is_better = least < cost * 0.9999  # a hair less is noise of rounding
        after = levels_behind(found, start).mul_(steps[columns])
        change[columns] = (after - before).where(is_better, 0)
        codes[columns] = torch.where(is_better, found, codes[columns])
