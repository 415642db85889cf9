"""Improves a quantized matrix in small exact steps: codes one by one, then the scale and zero of each group.

Coordinate descent on trace(E H E^T): every step takes the best values of one column's codes, or of one
group's integer scale and zero, while all else stays. So the error never grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ernie_local.packing import LowBitFormat, QuantizedMatrix, dequantize
from ernie_quant.grid import ScaleGrid, best_whole_pair, grid_of
from ernie_quant.native_steps import BLOCK, has_native_steps, run_native_step

Tensor = torch.Tensor


def refine(
    weights: Tensor,
    hessian: Tensor,
    matrix: QuantizedMatrix,
    sweeps: int = 2,
    *,
    with_codes: bool = True,
    with_scales: bool = True,
) -> QuantizedMatrix:
    """`matrix`, of an asymmetric format, after `sweeps` over all of its columns.

    weights: (rows, columns), the exact ones; hessian: (columns, columns) float32. Without
    `with_codes` codes stay, without `with_scales` scales and zeros.
    """
    grid = grid_of(matrix)
    state = _State(
        low_bit=matrix.low_bit,
        codes=matrix.codes.t().contiguous(),
        scales=grid.scales.t().contiguous(),
        zeros=grid.zeros.t().contiguous(),
        row_scales=grid.row_scales.float(),
        pull=hessian @ (weights.float() - dequantize(matrix)).t(),
    )
    is_native = has_native_steps()
    columns, rows = state.pull.shape
    for _ in range(sweeps):
        for start in range(0, columns, BLOCK):
            stop = min(start + BLOCK, columns)
            changes = torch.empty(stop - start, rows)
            if is_native:
                read = hessian, state.pull, state.row_scales, matrix.low_bit.format_id, start, stop
                written = state.codes, state.scales, state.zeros, changes
                run_native_step("refine_block", *read, with_codes, with_scales, *written)
            else:
                _refine_block(state, hessian, slice(start, stop), changes, with_codes, with_scales)
            state.pull.addmm_(hessian[:, start:stop], changes, alpha=-1)
    refined = ScaleGrid(
        matrix.low_bit, state.scales.t().contiguous(), state.zeros.t().contiguous(), state.row_scales.half()
    )
    return refined.with_codes(state.codes.t().contiguous())


def output_error(weights: Tensor, hessian: Tensor, matrix: QuantizedMatrix) -> float:
    """trace(E H E^T) / trace(W H W^T): the share of the output's power that is lost."""
    return lost_share(weights.float(), hessian, dequantize(matrix))


def lost_share(exact: Tensor, hessian: Tensor, dequantized: Tensor) -> float:
    """The same of a matrix in any format. exact, dequantized: (rows, columns) float32."""
    error = exact - dequantized
    power = float(((exact @ hessian) * exact).sum(dtype=torch.float64))
    lost = float(((error @ hessian) * error).sum(dtype=torch.float64))
    return lost / power if power > 0 else 0.0


@dataclass(slots=True)
class _State:
    """All tensors transposed, so that a column is a row of memory."""

    low_bit: LowBitFormat
    codes: Tensor  # (columns, rows) uint8
    scales: Tensor  # (groups, rows) uint8
    zeros: Tensor  # (groups, rows) uint8
    row_scales: Tensor  # (rows,) float32
    pull: Tensor  # (columns, rows): H (W - Q), the direction that reduces the error

    def step_and_shift(self, group: int) -> tuple[Tensor, Tensor]:
        return self.scales[group] * self.row_scales, self.zeros[group] / self.low_bit.zero_divisor

    def values(self, group: int, columns: slice) -> Tensor:
        """The values of the group's codes, (group's columns, rows)."""
        step, shift = self.step_and_shift(group)
        return (self.codes[columns] - shift).mul_(step)


def _refine_block(
    state: _State, hessian: Tensor, block: slice, changes: Tensor, with_codes: bool, with_scales: bool
) -> None:
    """Refine the block's groups in turn; write the changes of their values, (block, rows), to `changes`.

    `state.pull` stays as it is.
    """
    size = state.low_bit.group_size
    block_pull = state.pull[block].clone()
    for start in range(block.start, block.stop, size):
        columns = slice(start, min(start + size, block.stop))
        inside = slice(columns.start - block.start, columns.stop - block.start)
        group = start // size
        before = state.values(group, columns)
        pull = block_pull[inside].clone()  # (group's columns, rows)
        own = hessian[columns, columns]
        if with_codes:
            _descend(state, group, columns, own, pull)
        if with_scales:
            _refit(state, group, columns, own, pull)
        changes[inside] = state.values(group, columns).sub_(before)
        block_pull.addmm_(hessian[block, columns], changes[inside], alpha=-1)


def _descend(state: _State, group: int, columns: slice, own: Tensor, pull: Tensor) -> None:
    """Choose each column's codes in turn; `pull` is updated for the columns of the group."""
    step, _ = state.step_and_shift(group)
    for index, codes in enumerate(state.codes[columns]):
        # The parabola in this value has its minimum at value + pull / H_jj.
        code = (pull[index] / own[index, index]).div_(step).add_(codes).round_()
        code.clamp_(0, state.low_bit.highest_code)
        change = (code - codes.float()).mul_(step)
        codes.copy_(code)
        pull.addr_(own[index], change, alpha=-1)


def _refit(state: _State, group: int, columns: slice, own: Tensor, pull: Tensor) -> None:
    """The best of four integer pairs around the least-squares scale and zero, or the present pair.

    A value is s c + b with b = -s z; the error is a parabola in (s, b) whose coefficients follow.
    """
    low_bit, codes = state.low_bit, state.codes[columns].float()
    moved = own @ codes  # H c
    target = pull + own @ state.values(group, columns)  # H (value + its best change)
    code_code = (codes * moved).sum(0)  # (rows,)
    code_one = moved.sum(0)
    one_one = own.sum()
    code_target, one_target = (codes * target).sum(0), target.sum(0)

    def cost(scale: Tensor, zero: Tensor) -> Tensor:
        step = scale * state.row_scales
        offset = -step * zero / low_bit.zero_divisor
        return (
            step.square() * code_code
            + 2 * step * offset * code_one
            + offset.square() * one_one
            - 2 * (step * code_target + offset * one_target)
        )

    determinant = code_code * one_one - code_one.square()
    step = (code_target * one_one - one_target * code_one) / determinant

    def wanted_zero(scale: Tensor) -> Tensor:
        step = scale * state.row_scales
        offset = (one_target - step * code_one) / one_one
        return -offset / step * low_bit.zero_divisor

    before = state.scales[group].float(), state.zeros[group].float()
    scale, zero = best_whole_pair(
        low_bit,
        (step / state.row_scales).nan_to_num(nan=1.0),
        wanted_zero,
        cost,
        start=(*before, cost(*before)),
    )
    state.scales[group], state.zeros[group] = scale.byte(), zero.byte()
