"""Rounding to nearest against a textbook version, weight by weight."""

from __future__ import annotations

import pytest
import torch

from ernie_local.packing import FORMATS, dequantize, find_format
from ernie_local.packing.formats import TRELLIS_STRIDE, TRELLIS_ZERO
from ernie_local.packing.rounding import round_to_nearest
from ernie_local.packing.trellis import levels_of, nearest_codes

STEPWISE = [name for name, low_bit in FORMATS.items() if not low_bit.is_trellis]


@pytest.mark.parametrize("name", STEPWISE)
def test_no_weight_is_further_from_its_own_than_the_format_makes_it(name: str) -> None:
    """Half a step of the group, and what rounding scale and zero to whole numbers moves: one step at most."""
    low_bit = find_format(name)
    weights = torch.randn(20, 208, generator=torch.Generator().manual_seed(0)) * 0.02
    matrix = round_to_nearest(weights, low_bit)
    error = (dequantize(matrix) - weights).abs()
    scales = matrix.scales.float()
    if matrix.row_scales is not None:
        scales = scales * matrix.row_scales.float()[:, None]
    steps = scales.repeat_interleave(low_bit.group_size, dim=1)[:, :208]
    assert (error <= steps * (0.5 + 0.5 / low_bit.zero_divisor) * 1.01).all()


def textbook(weights: list[float], highest_code: int) -> list[float]:
    """Asymmetric rounding of one group, with exact scale and zero."""
    low, high = min(0.0, *weights), max(0.0, *weights)
    step = (high - low) / highest_code
    return [round((weight - low) / step) * step + low for weight in weights]


@pytest.mark.parametrize(
    ("name", "allowed"), [("w4", 1.15), ("w3", 1.15), ("w2", 1.6), ("w2l", 1.6), ("w2s", 1.6)]
)
def test_whole_scales_and_zeros_cost_little(name: str, allowed: float) -> None:
    """4-bit metadata lose more than 8-bit ones, as expected; the allowance is on the error's size."""
    low_bit = find_format(name)
    weights = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    rounded = dequantize(round_to_nearest(weights, low_bit))
    groups = [
        textbook(group, low_bit.highest_code)
        for row in weights.tolist()
        for group in (row[i : i + low_bit.group_size] for i in range(0, 256, low_bit.group_size))
    ]
    expected = torch.tensor(groups).view(16, 256)
    assert (rounded - weights).norm() <= allowed * (expected - weights).norm()


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_come_back(name: str) -> None:
    assert not dequantize(round_to_nearest(torch.zeros(3, 64), find_format(name))).any()


@pytest.mark.parametrize("name", STEPWISE)
def test_constants_come_back(name: str) -> None:
    low_bit = find_format(name)
    constant = torch.full((3, 64), -0.75)
    assert torch.allclose(dequantize(round_to_nearest(constant, low_bit)), constant, rtol=0.02)


def test_more_bits_lose_less() -> None:
    weights = torch.randn(32, 512, generator=torch.Generator().manual_seed(2))
    errors = {
        name: float((dequantize(round_to_nearest(weights, low_bit)) - weights).norm() / weights.norm())
        for name, low_bit in FORMATS.items()
    }
    assert errors["w8"] < errors["w4"] < errors["w3"] < errors["w2l"] < errors["w2"] < errors["w2s"]
    assert errors["w2t"] < 0.85 * errors["w2l"]
    assert errors["w4"] < 0.1


def test_the_nearest_path_is_the_best_of_all() -> None:
    """Each of 4^5 sequences of codes is tried on every path."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randn(2, 5 * TRELLIS_STRIDE, generator=generator) * 5
    importance = torch.rand(targets.shape, generator=generator)
    found = nearest_codes(targets, importance)
    sequences = torch.cartesian_prod(*[torch.arange(4, dtype=torch.uint8)] * 5)  # (1024, 5)
    tried = torch.zeros(1024, 5, TRELLIS_STRIDE, dtype=torch.uint8)
    tried[:, :, 0] = sequences
    levels = levels_of(tried.flatten(1)).unflatten(1, (5, TRELLIS_STRIDE))[:, :, 0].float() - TRELLIS_ZERO
    for row in range(2):
        for path in range(TRELLIS_STRIDE):
            wanted, weight = targets[row, path::TRELLIS_STRIDE], importance[row, path::TRELLIS_STRIDE]
            costs = ((levels - wanted).square() * weight).sum(1)
            chosen = found[row, path::TRELLIS_STRIDE]
            cost = costs[(sequences == chosen).all(1)]
            assert float(cost) == pytest.approx(float(costs.min()), rel=1e-5)


def test_a_trellis_loses_as_little_of_normal_numbers_as_is_known() -> None:
    """Ungerboeck's 16 states with 8 levels lose 0.0836 of a sequence's power, the four best levels 0.1175."""
    weights = torch.randn(16, 4096, generator=torch.Generator().manual_seed(4))
    rounded = dequantize(round_to_nearest(weights, find_format("w2t")))
    assert float((rounded - weights).square().mean()) < 0.086
