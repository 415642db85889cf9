"""Rotary embedding against the textbook, pair by pair in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from ernie_local.config import parse_config
from ernie_local.kernels.reference import rotate_halves
from ernie_local.model.rope import TextRope, VisionRope, patch_positions, rotate_pairs

if TYPE_CHECKING:
    from ernie_local.config import TextConfig, VisionConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text_config() -> TextConfig:
    """The 28B model's own sizes: heads of 128, sections 22, 22, 20."""
    return parse_config({"model_type": "ernie4_5_vl_moe"}, "config.json").text


@pytest.fixture(scope="module")
def vision_config() -> VisionConfig:
    """The 28B model's own tower: heads of 80."""
    return parse_config({"model_type": "ernie4_5_vl_moe"}, "config.json").vision


def test_text_frequencies_take_the_axis_of_the_published_layout(text_config: TextConfig) -> None:
    positions = torch.tensor([[3], [50], [700]])  # time, height, width
    cosines, sines = TextRope(text_config, CPU).angles(positions)
    for index in range(64):
        axis = 3 if index >= 44 else (50 if index % 2 == 0 else 700)
        angle = axis * 500000.0 ** (-2 * index / 128)
        assert cosines[0, index].item() == pytest.approx(math.cos(angle), abs=2e-4)
        assert sines[0, index].item() == pytest.approx(math.sin(angle), abs=2e-4)


def test_equal_positions_are_plain_interleaved_rope(text_config: TextConfig) -> None:
    states = torch.randn(4, 2, 128, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 1, 7, 90])
    turned = rotate_pairs(states, *TextRope(text_config, CPU).angles(positions.expand(3, -1)))
    for token, position in enumerate(positions.tolist()):
        for pair in range(64):
            turn = complex(math.cos(angle := position * 500000.0 ** (-pair / 64)), math.sin(angle))
            for head in range(2):
                even, odd = states[token, head, 2 * pair : 2 * pair + 2].tolist()
                expected = complex(even, odd) * turn
                assert turned[token, head, 2 * pair].item() == pytest.approx(expected.real, abs=1e-4)
                assert turned[token, head, 2 * pair + 1].item() == pytest.approx(expected.imag, abs=1e-4)


def test_scores_depend_on_distance_only(text_config: TextConfig) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 1, 1, 128, generator=generator)
    rope = TextRope(text_config, CPU)

    def score(query_position: int, key_position: int) -> float:
        turned_query = rotate_pairs(query, *rope.angles(torch.full((3, 1), query_position)))
        turned_key = rotate_pairs(key, *rope.angles(torch.full((3, 1), key_position)))
        return float((turned_query * turned_key).sum())

    assert score(9, 4) == pytest.approx(score(505, 500), abs=2e-3)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=2e-3)


def test_angles_stay_float32_for_bfloat16_states(text_config: TextConfig) -> None:
    states = torch.ones(2, 1, 128, dtype=torch.bfloat16)
    positions = torch.tensor([256, 257]).expand(3, -1)  # equal once rounded to bfloat16
    cosines, sines = TextRope(text_config, CPU).angles(positions)
    assert cosines.dtype == sines.dtype == torch.float32
    turned = rotate_pairs(states, cosines, sines)
    assert turned.dtype == torch.bfloat16
    assert not torch.equal(turned[0], turned[1])


def test_sections_that_do_not_fill_the_head_are_our_own_mistake(text_config: TextConfig) -> None:
    with pytest.raises(AssertionError):
        TextRope(replace(text_config, mrope_section=(20, 20, 20)), CPU)


@pytest.mark.parametrize(("rows", "columns", "merge"), [(4, 6, 2), (2, 2, 2), (6, 3, 3), (3, 5, 1)])
def test_patch_positions_run_window_by_window(rows: int, columns: int, merge: int) -> None:
    expected = [
        (window_row * merge + row, window_column * merge + column)
        for window_row in range(rows // merge)
        for window_column in range(columns // merge)
        for row in range(merge)
        for column in range(merge)
    ]
    assert [tuple(pair) for pair in patch_positions(rows, columns, merge).T.tolist()] == expected


def test_vision_rope_turns_halves_by_row_then_column(vision_config: VisionConfig) -> None:
    states = torch.randn(1, 1, 80, generator=torch.Generator().manual_seed(2))
    positions = torch.tensor([[5], [11]])
    turned = rotate_halves(states, *VisionRope(vision_config, CPU).angles(positions))
    for index in range(40):
        axis = 5 if index < 20 else 11
        angle = axis * 10000.0 ** (-2 * (index % 20) / 40)
        expected = complex(states[0, 0, index].item(), states[0, 0, index + 40].item()) * complex(
            math.cos(angle), math.sin(angle)
        )
        assert turned[0, 0, index].item() == pytest.approx(expected.real, abs=1e-4)
        assert turned[0, 0, index + 40].item() == pytest.approx(expected.imag, abs=1e-4)
