"""Choosing codes of w2t: against the best of all codes, and each step better than the one before."""

from __future__ import annotations

import itertools

import pytest
import torch

from ernie_local.errors import UsageError
from ernie_local.packing import QuantizedMatrix, dequantize, find_format
from ernie_local.packing.formats import TRELLIS_STRIDE, TRELLIS_ZERO
from ernie_local.packing.rounding import round_to_nearest, trellis_scales
from ernie_local.packing.trellis import levels_of
from ernie_quant.hessian import damped, inverse_factor, second_moments
from ernie_quant.recipe import Recipe, quantize_matrix
from ernie_quant.refine import lost_share, output_error
from ernie_quant.trellis_gptq import (
    ANY_STATE,
    Stretch,
    choose_paths,
    levels_behind,
    ring_order,
    ring_order_and_factor,
)
from ernie_quant.trellis_refine import refine_paths, steps_of

pytestmark = [
    pytest.mark.usefixtures("inner_loops"),
    pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing"),
]
W2T = find_format("w2t")


def draw(
    columns: int, rows: int, tokens: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, second moments to quantize with, and held-out ones of the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(2 * tokens, 1, generator=generator)
    inputs = torch.randn(2 * tokens, columns, generator=generator) + common
    own, held_out = (
        second_moments([part], torch.ones(tokens), columns).matrix for part in inputs.split(tokens)
    )
    return torch.randn(rows, columns, generator=generator) * 0.02, damped(own), held_out


def matrix_of(weights: torch.Tensor, codes: torch.Tensor) -> QuantizedMatrix:
    scales, row_scales = trellis_scales(weights, W2T)
    return QuantizedMatrix(W2T, codes, scales, None, row_scales)


def all_codes(columns: int) -> torch.Tensor:
    """(4 ** columns, columns) uint8."""
    return torch.tensor(list(itertools.product(range(4), repeat=columns)), dtype=torch.uint8)


def in_ring(codes: torch.Tensor, ring: int, of_ring: torch.Tensor) -> torch.Tensor:
    """Codes, (rows, columns), with those of one ring replaced, one row for each row of `of_ring`."""
    replaced = codes.repeat(len(of_ring), 1)
    replaced[:, ring::TRELLIS_STRIDE] = of_ring
    return replaced


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6])
def test_the_path_of_a_ring_is_the_best_of_all_where_columns_are_independent(length: int) -> None:
    columns = length * TRELLIS_STRIDE
    weights, _, _ = draw(columns, 1, 100, seed=length)
    diagonal = torch.rand(columns, generator=torch.Generator().manual_seed(1)) + 0.5
    start = matrix_of(weights, torch.zeros(1, columns, dtype=torch.uint8))
    step = steps_of(start)
    codes = choose_paths(weights, ring_order_and_factor(torch.diag(diagonal)), W2T.group_size, step)
    of_column = step.repeat_interleave(W2T.group_size, dim=1)[:, :columns]
    for ring in range(0, TRELLIS_STRIDE, 5):
        own = slice(ring, None, TRELLIS_STRIDE)
        levels = levels_of(in_ring(codes, ring, all_codes(length)))[:, own].float() - TRELLIS_ZERO
        costs = ((levels * of_column[:, own] - weights[:, own]).square() * diagonal[own]).sum(1)
        chosen = (
            (levels_of(codes)[:, own].float() - TRELLIS_ZERO) * of_column[:, own] - weights[:, own]
        ).square()
        assert float((chosen * diagonal[own]).sum()) == pytest.approx(float(costs.min()), rel=1e-4)


def test_a_search_between_two_states_ends_in_them_at_the_least_cost() -> None:
    """Plain torch, without feedback: all codes of six columns that lead from one state to another."""
    generator = torch.Generator().manual_seed(2)
    left = torch.randn(6, 1, generator=generator) * 5
    stretch = Stretch(left, torch.ones(6, 1), torch.eye(6))
    codes = all_codes(6).t()  # (columns, choices)
    for start, end in ((0, 5), (9, 15)):
        levels = levels_behind(codes, torch.full((codes.shape[1],), start))
        ends = torch.zeros(codes.shape[1], dtype=torch.long)
        for code in codes[-4:]:
            ends = ends >> 1 | (code.long() & 1) << 3
        costs = (levels - left).square().sum(0)
        found, cost, first = stretch.search(torch.tensor([start]), torch.tensor([end]))
        assert int(first) == start
        assert float(cost) == pytest.approx(float(costs[ends == end].min()), rel=1e-5)
        assert float(costs[ends == end].min()) > float(costs.min())
        assert torch.equal(levels_behind(found, torch.tensor([start])), levels[:, costs == cost][:, :1])
    anywhere = torch.tensor([ANY_STATE])
    assert float(stretch.search(anywhere, anywhere)[1]) <= float(costs.min())


def test_feedback_comes_near_the_best_of_all_codes() -> None:
    """Rows of 16 columns, rings of one: columns 0 to 6 vary, with the others fixed, by exhaustive search."""
    weights, hessian, _ = draw(16, 8, 300, seed=3)
    step = steps_of(matrix_of(weights, torch.zeros(8, 16, dtype=torch.uint8)))
    codes = choose_paths(weights, ring_order_and_factor(hessian), W2T.group_size, step)
    order = ring_order(16)
    assert torch.equal(order, torch.arange(16))
    found, best = 0.0, 0.0
    for row in range(8):
        tried = codes[row].repeat(4**7, 1)
        tried[:, :7] = all_codes(7)
        for_row = torch.cat((codes[row : row + 1], tried))
        errors = (levels_of(for_row).float() - TRELLIS_ZERO) * step[row] - weights[row]
        costs = ((errors @ hessian) * errors).sum(1)
        found, best = found + float(costs[0]), best + float(costs.min())
    assert found < 1.25 * best  # GPTQ is greedy; rounding without feedback is far above
    plain = round_to_nearest(weights, W2T)
    assert output_error(weights, hessian, plain) * float(((weights @ hessian) * weights).sum()) > 1.5 * found


@pytest.mark.parametrize("columns", [16, 48, 192, 512, 2560])
def test_each_step_beats_the_one_before(columns: int) -> None:
    weights, hessian, held_out = draw(columns, 40 if columns < 512 else 3, 2 * columns, seed=columns)
    rounded = round_to_nearest(weights, W2T)
    walked = matrix_of(
        weights, choose_paths(weights, ring_order_and_factor(hessian), W2T.group_size, steps_of(rounded))
    )
    matrices = [rounded, walked, *(refine_paths(weights, hessian, walked, sweeps) for sweeps in range(3))]
    errors = [output_error(weights, hessian, matrix) for matrix in matrices]
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.99 * errors[1]
    if columns <= 192:  # three rows are too few to tell
        assert output_error(weights, held_out, matrices[-1]) < output_error(weights, held_out, rounded)


def test_w2t_loses_less_than_w2_at_fewer_bits() -> None:
    weights, hessian, held_out = draw(512, 64, 2048, seed=4)
    errors = {
        name: output_error(
            weights, held_out, quantize_matrix(weights, find_format(name), Recipe("gptq"), hessian)
        )
        for name in ("w2t", "w2", "w2s")
    }
    assert errors["w2t"] < 0.95 * errors["w2"] < errors["w2s"], errors


def test_refitted_group_scales_are_the_best_of_all() -> None:
    weights, hessian, _ = draw(32, 3, 300, seed=5)
    start = round_to_nearest(weights, W2T)
    refitted = refine_paths(weights, hessian, start, 0)
    for row in range(3):
        one = slice(row, row + 1)
        errors = []
        for scale in range(16):
            scales = torch.full((1, 1), scale, dtype=torch.uint8)
            assert start.row_scales is not None
            tried = QuantizedMatrix(W2T, start.codes[one], scales, None, start.row_scales[one])
            errors.append(output_error(weights[one], hessian, tried))
        assert int(refitted.scales[row, 0]) == min(range(16), key=errors.__getitem__)


def test_zeros_and_outliers_survive_every_step() -> None:
    _, hessian, _ = draw(64, 3, 200)
    weights = torch.stack(
        (torch.zeros(64), torch.full((64,), 0.5), torch.full((64,), -3e-7), torch.randn(64) * 0.02)
    )
    weights[3, 7] = float(1 << 20)  # the largest that a checkpoint may have
    values = dequantize(quantize_matrix(weights, W2T, Recipe("gptq"), hessian))
    assert bool(values.isfinite().all())
    assert bool((values[0] == 0).all())
    # No level of a trellis is constant, but the errors cancel in what the columns have in common.
    assert lost_share(weights[1:2], hessian, values[1:2]) < 0.02
    # Beside such a weight the others become the least level, a ninth of it.
    assert lost_share(weights[3:], hessian, values[3:]) < 0.3


def test_a_weight_beyond_fp16_is_refused() -> None:
    weights, hessian, _ = draw(64, 3, 200)
    weights[1, 5] = 1e30
    with pytest.raises(UsageError, match="row_scales are not finite"):
        quantize_matrix(weights, W2T, Recipe("gptq"), hessian)


def test_inputs_of_any_size_have_the_same_path() -> None:
    weights, hessian, _ = draw(64, 3, 200)
    usual, huge = (quantize_matrix(weights, W2T, Recipe("gptq"), hessian * 4.0**power) for power in (0, 52))
    assert bool((usual.codes == huge.codes).all())


def test_an_expert_without_tokens_is_quantized_as_if_columns_were_alike() -> None:
    weights, _, _ = draw(64, 16, 200)
    nothing = second_moments([], torch.zeros(0), 64).matrix
    matrix = quantize_matrix(weights, W2T, Recipe("gptq"), nothing)
    assert output_error(weights, torch.eye(64), matrix) < 0.15


def test_factors_of_stretches_are_those_of_the_inverse() -> None:
    _, hessian, _ = draw(48, 1, 200)
    square = hessian[::4, ::4].contiguous()
    factor = inverse_factor(square)
    assert torch.allclose(factor.mT @ factor @ square, torch.eye(12), atol=1e-4)
