"""Rows that make up for each other's errors: a slow textbook version, and errors that only get smaller."""

from __future__ import annotations

import pytest
import torch

from ernie_local.packing import LowBitFormat, QuantizedMatrix, dequantize, find_format
from ernie_quant.gptq import gptq
from ernie_quant.grid import ScaleGrid, search_grid
from ernie_quant.hessian import damped, second_moments
from ernie_quant.recipe import quantize_calibrated

W2, W2T = find_format("w2"), find_format("w2t")
in_both_ways = pytest.mark.parametrize("low_bit", [W2, W2T], ids=["w2", "w2t"])


def moments_of(size: int, seed: int) -> torch.Tensor:
    """Of inputs, or gradients, that lie mostly in a few directions."""
    generator = torch.Generator().manual_seed(seed)
    mixing = (
        torch.linalg.qr(torch.randn(size, size, generator=generator))[0] * torch.arange(1, size + 1) ** -1.0
    )
    drawn = torch.randn(4 * size, size, generator=generator) @ mixing.t()
    return second_moments([drawn], torch.ones(len(drawn)), size).matrix


def draw(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights and both sides."""
    weights = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * 0.02
    return weights, damped(moments_of(columns, seed=1)), damped(moments_of(rows, seed=2), 0.3)


def error_of(
    weights: torch.Tensor, hessian: torch.Tensor, output_side: torch.Tensor, matrix: QuantizedMatrix
) -> float:
    error = (weights - dequantize(matrix)).double()
    return float(((output_side.double() @ error @ hessian.double()) * error).sum())


@in_both_ways
def test_outputs_that_are_alike_and_apart_change_nothing(low_bit: LowBitFormat) -> None:
    weights, hessian, _ = draw(48, 96)
    expected = quantize_calibrated(weights, low_bit, hessian, None, 1)
    matrix = quantize_calibrated(weights, low_bit, hessian, torch.eye(48), 1)
    assert torch.equal(matrix.codes, expected.codes)
    assert torch.equal(dequantize(matrix), dequantize(expected))


def textbook(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    output_side: torch.Tensor,
    grid: ScaleGrid,
    low_bit: LowBitFormat,
) -> torch.Tensor:
    """Row by row: the best real row for the errors so far, if all later rows may still be anything."""
    side, codes = output_side.double(), torch.zeros(weights.shape, dtype=torch.uint8)
    errors = torch.zeros(weights.shape, dtype=torch.float64)
    order = output_side.diagonal().argsort(descending=True).tolist()
    for place, row in enumerate(order):
        done, now, later = order[:place], [*order[:place], row], order[place + 1 :]
        left = side[now][:, now]
        if later:
            joined = side[now][:, later]
            left = left - joined @ torch.linalg.inv(side[later][:, later]) @ joined.t()
        moved = (left[-1, :-1] / left[-1, -1]) @ errors[done] if done else 0.0
        wanted = (weights[row].double() + moved).float()[None]
        one = slice(row, row + 1)
        own = ScaleGrid(low_bit, grid.scales[one], grid.zeros[one], grid.row_scales[one])
        chosen = gptq(wanted, hessian, own)
        codes[row] = chosen.codes[0]
        errors[row] = weights[row].double() - dequantize(chosen)[0].double()
    return codes


def test_rows_in_turn_are_the_textbooks() -> None:
    weights, hessian, output_side = draw(12, 96)  # blocks of one row
    codes = quantize_calibrated(weights, W2, hessian, output_side, 0).codes
    grid = search_grid(weights, W2, hessian.diagonal())
    expected = textbook(weights, hessian, output_side, grid, W2)
    # A near tie may fall the other way in float32, and then moves what comes after it.
    assert (codes == expected).double().mean() > 0.99
    assert (codes == gptq(weights, hessian, grid).codes).double().mean() < 0.95


@in_both_ways
def test_no_sweep_makes_it_worse_and_all_save_a_tenth(low_bit: LowBitFormat) -> None:
    weights, hessian, output_side = draw(160, 96)
    errors = [
        error_of(
            weights, hessian, output_side, quantize_calibrated(weights, low_bit, hessian, output_side, sweeps)
        )
        for sweeps in range(4)
    ]
    assert errors == sorted(errors, reverse=True), errors
    one_sided = quantize_calibrated(weights, low_bit, hessian, None, 2)
    assert errors[2] < 0.9 * error_of(weights, hessian, output_side, one_sided)


@in_both_ways
def test_rows_that_move_as_one_do_not_overshoot(low_bit: LowBitFormat) -> None:
    """All outputs matter by their sum alone: the coupling inside of a block is as large as it can be."""
    weights, hessian, _ = draw(160, 96)
    together = damped(torch.ones(160, 160), 0.3)
    errors = [
        error_of(weights, hessian, together, quantize_calibrated(weights, low_bit, hessian, together, sweeps))
        for sweeps in range(4)
    ]
    assert errors == sorted(errors, reverse=True), errors


@in_both_ways
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_weights_survive(low_bit: LowBitFormat, value: float) -> None:
    weights = torch.full((32, 64), value)
    hessian, output_side = damped(moments_of(64, seed=1)), damped(moments_of(32, seed=2), 0.3)
    matrix = quantize_calibrated(weights, low_bit, hessian, output_side, 2)
    power = float(((output_side @ weights @ hessian) * weights).sum())
    assert error_of(weights, hessian, output_side, matrix) <= 0.01 * power
