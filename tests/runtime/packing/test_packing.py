"""The low-bit formats: every bit comes back, the sizes are those promised, and the layout does not drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.packing import (
    FORMATS,
    ExpertPage,
    QuantizedMatrix,
    dequantize,
    find_format,
    pack_matrix,
    pack_page,
    unpack_matrix,
    unpack_page,
)
from ernie_local.packing.formats import TRELLIS_SCALES
from ernie_local.packing.page import read_layout
from tests.runtime.random_matrices import random_matrix, random_page

# Stored once: a change of these bytes is a change of the format and needs a new page version.
GOLDEN = Path(__file__).parent / "golden_pages"
GOLDEN_PAGES = (("w4", "w4"), ("w3", "w4"), ("w2l", "w2s"), ("w2", "w8"), ("w2t", "w2t"))


def same(left: QuantizedMatrix, right: QuantizedMatrix) -> bool:
    """Equal in every number."""
    pairs = ((left.zeros, right.zeros), (left.row_scales, right.row_scales))
    return (
        left.low_bit == right.low_bit
        and torch.equal(left.codes, right.codes)
        and torch.equal(left.scales, right.scales)
        and all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)
    )


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    rows=st.integers(1, 50),
    column_steps=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_round_trip_is_exact(name: str, rows: int, column_steps: int, seed: int) -> None:
    matrix = random_matrix(name, rows, 16 * column_steps, seed)
    packed = pack_matrix(matrix)
    assert packed.numel() == matrix.low_bit.matrix_bytes(rows, 16 * column_steps)
    assert same(unpack_matrix(packed, matrix.low_bit, rows, 16 * column_steps), matrix)


@settings(max_examples=20, deadline=None)
@given(
    gate_up=st.sampled_from(sorted(FORMATS)),
    down=st.sampled_from(sorted(FORMATS)),
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 1000),
)
def test_a_page_comes_back(gate_up: str, down: str, sizes: tuple[int, int], seed: int) -> None:
    page = random_page(gate_up, down, 16 * sizes[0], 16 * sizes[1], seed)
    packed = pack_page(page)
    assert packed.numel() == page.layout.page_bytes
    assert packed.numel() % 4096 == 0
    assert read_layout(packed) == page.layout
    back = unpack_page(packed)
    assert same(back.gate, page.gate)
    assert same(back.up, page.up)
    assert same(back.down, page.down)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("w4", 4.25), ("w3", 3.1875), ("w2l", 2.5), ("w2", 2.25), ("w2s", 2.125), ("w8", 8.125), ("w2t", 2.125)],
)
def test_bits_per_weight_are_those_of_the_table(name: str, bits: float) -> None:
    """A row scale adds 16 bits a row, and padding to cache lines at most as much again."""
    low_bit = find_format(name)
    for rows, columns in ((1536, 2560), (2560, 1536), (512, 2560), (2560, 512)):
        taken = 8 * low_bit.matrix_bytes(rows, columns) / (rows * columns)
        assert bits <= taken <= bits + 32 / columns


def test_weights_mean_what_the_formula_says() -> None:
    """Term by term, without any of the code under test but the numbers' places."""
    for name, low_bit in FORMATS.items():
        matrix = random_matrix(name, 3, 144, seed=5)
        weights = dequantize(matrix)
        for row in range(3):
            for column in (0, 15, 16, 63, 64, 127, 128, 143):
                group = column // low_bit.group_size
                code, scale = int(matrix.codes[row, column]), float(matrix.scales[row, group])
                if matrix.row_scales is None:
                    expected = scale * (code - 128)
                elif matrix.zeros is None:
                    step = float(matrix.row_scales[row]) * TRELLIS_SCALES[int(scale)]
                    expected = step * (textbook_level(matrix.codes[row].tolist(), column) - 9)
                else:
                    zero = float(matrix.zeros[row, group]) * low_bit.highest_code / low_bit.highest_zero
                    expected = float(matrix.row_scales[row]) * scale * (code - zero)
                assert float(weights[row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def textbook_level(codes: list[int], column: int) -> int:
    """Ungerboeck's code of 16 states by its polynomials, octal 23 and 04, over the last five bits."""
    window = 0
    for delay in range(5):
        window |= (codes[(column - 16 * delay) % len(codes)] & 1) << (4 - delay)
    subset = 2 * ((window & 0o23).bit_count() % 2) + (window & 0o04).bit_count() % 2
    return (0, 4, 6, 8, 10, 12, 14, 18)[subset + 4 * (codes[column] >> 1)]


def test_the_first_bytes_of_w4_lie_where_the_page_of_the_format_says() -> None:
    matrix = random_matrix("w4", 16, 64, seed=1)
    packed = pack_matrix(matrix)
    assert matrix.zeros is not None
    assert matrix.row_scales is not None
    assert torch.equal(packed[:32].view(torch.float16), matrix.row_scales)
    assert torch.equal(packed[32:48], matrix.scales[:, 0])
    assert torch.equal(packed[48:64], matrix.zeros[:, 0])
    codes = packed[64:]
    for block in range(8):
        for row in (0, 7, 15):
            for j in range(4):
                byte = int(codes[64 * block + 4 * row + j])
                assert byte & 15 == int(matrix.codes[row, 8 * block + j])
                assert byte >> 4 == int(matrix.codes[row, 8 * block + 4 + j])


@pytest.mark.parametrize("formats", GOLDEN_PAGES, ids="-".join)
def test_golden_pages(formats: tuple[str, str]) -> None:
    page = golden_page(*formats)
    stored = torch.frombuffer(
        bytearray((GOLDEN / f"{'-'.join(formats)}.bin").read_bytes()), dtype=torch.uint8
    )
    assert torch.equal(pack_page(page), stored)
    assert same(unpack_page(stored).down, page.down)


def golden_page(gate_up: str, down: str, hidden_size: int = 80, inner_size: int = 48) -> ExpertPage:
    """A page whose numbers follow from their places, whatever torch's random generator does."""
    page = random_page(gate_up, down, hidden_size, inner_size)

    def fill(matrix: QuantizedMatrix, salt: int) -> QuantizedMatrix:
        def pattern(like: torch.Tensor, step: int, highest: int) -> torch.Tensor:
            index = torch.arange(like.numel()).view(like.shape)
            return ((index * step + salt) % (highest + 1)).to(torch.uint8)

        low_bit = matrix.low_bit
        codes = pattern(matrix.codes, 7, low_bit.highest_code)
        if matrix.row_scales is None:
            scales = (pattern(matrix.scales, 3, 255).float() / 256).half()
            return replace(matrix, codes=codes, scales=scales)
        return replace(
            matrix,
            codes=codes,
            scales=pattern(matrix.scales, 3, low_bit.highest_scale),
            zeros=None if matrix.zeros is None else pattern(matrix.zeros, 5, low_bit.highest_zero),
            row_scales=(torch.arange(len(matrix.row_scales)).float() / 64).half(),
        )

    return replace(page, gate=fill(page.gate, 1), up=fill(page.up, 2), down=fill(page.down, 3))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("codes", torch.full((4, 32), 4, dtype=torch.uint8), "codes go up to 4, the format holds 0 to 3"),
        (
            "scales",
            torch.zeros(4, 2, dtype=torch.uint8),
            r"scales is torch.uint8 \(4, 2\), wanted .* \(4, 1\)",
        ),
        ("zeros", torch.full((4, 1), 16, dtype=torch.uint8), "zeros go up to 16, the format holds 0 to 15"),
        ("zeros", None, "zeros given: False, wanted: True"),
        ("row_scales", torch.full((4,), torch.inf).half(), "4 of 4 row_scales are not finite"),
    ],
)
def test_numbers_that_a_format_cannot_hold_are_refused(
    field: str, value: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        replace(random_matrix("w2", 4, 32), **{field: value})  # type: ignore[arg-type]


def test_columns_that_no_register_holds_are_refused() -> None:
    with pytest.raises(UsageError, match="4 x 40 cannot be packed: columns must be a multiple of 16"):
        find_format("w4").matrix_bytes(4, 40)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda page: page[:-4096], "has 8192 bytes, its header means 12288"),
        (lambda page: page[:10], "wanted bytes"),
        (lambda page: page.int(), "wanted bytes"),
        (lambda page: changed(page, 0, 0), "begins with .* wanted b'ERNX' version 2"),
        (lambda page: changed(page, 4, 9), "version 9, wanted b'ERNX' version 2"),
        (lambda page: changed(page, 6, 77), "names format 77, known are 1 to 7"),
        (lambda page: changed(page, 8, 7), "names hidden size 7"),
        (lambda page: changed(page, 12, 64), "its header means"),
    ],
)
def test_damaged_pages_are_refused(damage: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    packed = pack_page(random_page("w4", "w4", 128, 48))
    with pytest.raises(ModelUnusable, match=message):
        unpack_page(damage(packed))


def changed(page: torch.Tensor, position: int, value: int) -> torch.Tensor:
    copy = page.clone()
    copy[position] = value
    return copy
