"""Clip search, GPTQ and refinement: each against a slow textbook version, and each better than the one before
on second moments that it has not seen."""

from __future__ import annotations

import itertools

import pytest
import torch

from ernie_local.packing import LowBitFormat, QuantizedMatrix, dequantize, find_format
from ernie_local.packing.rounding import round_to_nearest
from ernie_quant.gptq import gptq
from ernie_quant.grid import ScaleGrid, grid_of, round_to_grid, search_grid
from ernie_quant.hessian import damped, second_moments
from ernie_quant.recipe import QuantizationMethod, Recipe, quantize_matrix
from ernie_quant.refine import output_error, refine

pytestmark = [
    pytest.mark.usefixtures("inner_loops"),
    pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing"),
]
ASYMMETRIC = ("w4", "w3", "w2l", "w2", "w2s")


def moments_of(tokens: torch.Tensor) -> torch.Tensor:
    return second_moments([tokens], torch.ones(tokens.shape[0]), tokens.shape[1]).matrix


def draw(
    columns: int, rows: int, tokens: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, second moments to quantize with, and held-out ones of the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(columns, columns, generator=generator))[0]
    mixing = basis * torch.arange(1, columns + 1) ** -0.5
    inputs = torch.randn(2 * tokens, columns, generator=generator) @ mixing.t()
    weights = torch.randn(rows, columns, generator=generator) * 0.02
    return weights, damped(moments_of(inputs[:tokens])), moments_of(inputs[tokens:])


@pytest.mark.parametrize("name", ASYMMETRIC)
def test_each_step_beats_the_one_before_on_held_out_moments(name: str) -> None:
    low_bit = find_format(name)
    weights, hessian, held_out = draw(256, 128, 2048)
    importance = hessian.diagonal()
    matrices = {
        "rtn": round_to_nearest(weights, low_bit),
        "clip": round_to_grid(weights, search_grid(weights, low_bit)),
        "gptq": gptq(weights, hessian, search_grid(weights, low_bit, importance)),
    }
    matrices["scales"] = refine(weights, hessian, matrices["gptq"], 1, with_codes=False)
    matrices["both"] = refine(weights, hessian, matrices["gptq"], 1)
    matrices["twice"] = refine(weights, hessian, matrices["gptq"], 2)
    errors = [output_error(weights, held_out, matrix) for matrix in matrices.values()]
    assert errors == sorted(errors, reverse=True), dict(zip(matrices, errors, strict=True))
    assert errors[2] < 0.75 * errors[1]  # GPTQ is the large step


def test_importance_moves_the_error_to_columns_that_matter_little() -> None:
    weights, _, _ = draw(64, 64, 128)
    low_bit = find_format("w2s")
    importance = torch.where(torch.arange(64) % 2 == 0, 100.0, 1.0)
    plain = dequantize(round_to_grid(weights, search_grid(weights, low_bit))) - weights
    weighted = dequantize(round_to_grid(weights, search_grid(weights, low_bit, importance))) - weights
    assert (weighted.square() * importance).sum() < (plain.square() * importance).sum()


@pytest.mark.parametrize("seed", range(4))
def test_the_grid_of_a_group_is_the_best_of_all_that_were_tried(seed: int) -> None:
    """One row, one group: every factor and whole number by hand."""
    low_bit = find_format("w2s")
    weights = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed)).double()
    weights[0, 7] = 0.9 + seed  # an outlier to clip
    low, high = min(0.0, float(weights.min())), max(0.0, float(weights.max()))
    best = min(
        (step_error(weights, low_bit, (high - low) * factor / 3, -low * 3 / (high - low)), factor)
        for factor in [1.0 - 0.05 * step for step in range(13)]
    )
    step = (high - low) * best[1] / 3
    row_scale = float(torch.tensor(step / low_bit.highest_scale).half())
    wanted_zero = -low * 3 / (high - low) * low_bit.zero_divisor
    candidates = [
        (step_error(weights, low_bit, scale * row_scale, zero / low_bit.zero_divisor), scale, zero)
        for scale in {int(step / row_scale), min(15, int(step / row_scale) + 1)}
        for zero in (int(wanted_zero), int(wanted_zero) + 1)
    ]
    grid = search_grid(weights, low_bit)
    assert (int(grid.scales), int(grid.zeros)) == min(candidates)[1:]
    assert float(grid.row_scales) == row_scale


def step_error(weights: torch.Tensor, low_bit: LowBitFormat, step: float, shift: float) -> float:
    codes = (weights / step + shift).round().clamp(0, low_bit.highest_code)
    return float(((codes - shift) * step - weights).square().sum())


def textbook_gptq(weights: torch.Tensor, hessian: torch.Tensor, grid: ScaleGrid) -> torch.Tensor:
    """Optimal brain quantization: the inverse worked out anew after every column, each row on its own."""
    low_bit, exact = grid.low_bit, hessian.double()
    order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    codes = torch.zeros(weights.shape, dtype=torch.uint8)
    left = weights.double().clone()
    for done, column in enumerate(order):
        rest = torch.tensor(order[done:])
        inverse = torch.linalg.inv(exact[rest][:, rest])
        group = column // low_bit.group_size
        for row in range(weights.shape[0]):
            step, shift = float(grid.steps[row, group]), float(grid.shifts[row, group])
            code = min(max(round(float(left[row, column]) / step + shift), 0), low_bit.highest_code)
            codes[row, column] = code
            error = (float(left[row, column]) - (code - shift) * step) / float(inverse[0, 0])
            left[row, rest] -= error * inverse[0]
    return codes


@pytest.mark.parametrize("name", ["w4", "w2", "w2l"])
def test_gptq_chooses_the_textbooks_codes(name: str) -> None:
    weights, hessian, _ = draw(208, 12, 900, seed=4)  # more than one block, groups cut by it
    grid = search_grid(weights, find_format(name), hessian.diagonal())
    codes = gptq(weights, hessian, grid).codes
    expected = textbook_gptq(weights, hessian, grid)
    # A near tie may fall the other way in float32, and then moves what comes after it in the same row.
    assert (codes == expected).all(dim=1).sum() >= 11


def test_gptq_without_correlation_is_rounding() -> None:
    weights, _, _ = draw(96, 8, 200)
    grid = search_grid(weights, find_format("w2"))
    diagonal = torch.diag(torch.rand(96, generator=torch.Generator().manual_seed(5)) + 0.5)
    assert torch.equal(gptq(weights, diagonal, grid).codes, round_to_grid(weights, grid).codes)


def textbook_descent(weights: torch.Tensor, hessian: torch.Tensor, matrix: QuantizedMatrix) -> torch.Tensor:
    """Every code of every column tried in turn, each time by the whole error of the row."""
    low_bit, grid, exact = matrix.low_bit, grid_of(matrix), hessian.double()
    codes = matrix.codes.clone()
    columns = weights.shape[1]
    groups = torch.arange(columns) // low_bit.group_size
    for row in range(weights.shape[0]):
        steps, shifts = grid.steps[row, groups].double(), grid.shifts[row, groups].double()
        for column in range(columns):
            errors = []
            for code in range(low_bit.highest_code + 1):
                tried = codes[row].double()
                tried[column] = code
                error = weights[row].double() - (tried - shifts) * steps
                errors.append((float(error @ exact @ error), code))
            codes[row, column] = min(errors)[1]
    return codes


def test_one_sweep_of_codes_is_the_textbooks() -> None:
    weights, hessian, _ = draw(80, 4, 300, seed=6)
    start = round_to_nearest(weights, find_format("w2"))
    refined = refine(weights, hessian, start, 1, with_scales=False)
    assert torch.equal(refined.codes, textbook_descent(weights, hessian, start))
    assert torch.equal(refined.scales, start.scales)


def test_refitted_scales_are_the_best_of_all_whole_ones() -> None:
    """One row and one group of w2s: all 15 scales and 16 zeros by hand."""
    weights, hessian, _ = draw(64, 1, 300, seed=7)
    start = round_to_nearest(weights, find_format("w2s"))
    refined = refine(weights, hessian, start, 1, with_codes=False)
    errors = {
        (scale, zero): output_error(
            weights,
            hessian,
            QuantizedMatrix(
                start.low_bit,
                start.codes,
                torch.tensor([[scale]], dtype=torch.uint8),
                torch.tensor([[zero]], dtype=torch.uint8),
                start.row_scales,
            ),
        )
        for scale, zero in itertools.product(range(1, 16), range(16))
    }
    assert refined.zeros is not None
    assert (int(refined.scales), int(refined.zeros)) == min(errors, key=lambda pair: errors[pair])


@pytest.mark.parametrize("name", ASYMMETRIC)
def test_refining_never_makes_it_worse(name: str) -> None:
    weights, hessian, _ = draw(208, 24, 900, seed=8)
    matrix = round_to_nearest(weights, find_format(name))
    error = output_error(weights, hessian, matrix)
    for _ in range(3):
        matrix = refine(weights, hessian, matrix, 1)
        next_error = output_error(weights, hessian, matrix)
        assert next_error <= error * (1 + 1e-5)
        error = next_error


@pytest.mark.parametrize("name", ASYMMETRIC)
def test_constant_and_zero_weights_survive_every_step(name: str) -> None:
    _, hessian, _ = draw(64, 3, 200)
    weights = torch.stack((torch.zeros(64), torch.full((64,), 0.5), torch.full((64,), -3e-7)))
    grid = search_grid(weights, find_format(name), hessian.diagonal())
    refined = refine(weights, hessian, gptq(weights, hessian, grid))
    values = dequantize(refined)
    assert bool(values.isfinite().all())
    assert torch.allclose(values[:2], weights[:2], rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("name", [*ASYMMETRIC, "w2t"])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_rows_of_small_weights_lose_no_more_than_others(name: str, method: QuantizationMethod) -> None:
    weights, hessian, _ = draw(64, 48, 300)
    low_bit, recipe = find_format(name), Recipe(method)
    usual = output_error(weights, hessian, quantize_matrix(weights, low_bit, recipe, hessian))
    for largest, most in ((3e-5, 2 * usual), (1e-5, 0.5)):  # of fp16 scales the smallest is 6e-8
        small = weights * (largest / weights.abs().max())
        assert output_error(small, hessian, quantize_matrix(small, low_bit, recipe, hessian)) < most
    gone = quantize_matrix(weights * 1e-9, low_bit, recipe, hessian)
    assert float(dequantize(gone).abs().max()) < 1e-8


def test_output_error_is_the_lost_power_of_the_outputs() -> None:
    weights, _, _ = draw(64, 16, 100, seed=9)
    tokens = torch.randn(500, 64, generator=torch.Generator().manual_seed(10))
    matrix = round_to_nearest(weights, find_format("w2"))
    exact, rounded = tokens @ weights.t(), tokens @ dequantize(matrix).t()
    expected = float((exact - rounded).square().sum() / exact.square().sum())
    assert output_error(weights, moments_of(tokens), matrix) == pytest.approx(expected, rel=1e-4)
