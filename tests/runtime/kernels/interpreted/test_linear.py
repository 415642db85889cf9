"""Products of packed matrices, and their rows, against plain torch: every format, tails, ranges."""

from __future__ import annotations

import pytest
import torch

from ernie_local.kernels import reference
from ernie_local.kernels.arguments import PackedMatrix
from ernie_local.kernels.triton.device import TritonDevice
from ernie_local.kernels.triton.linear import look_up_rows, multiply_tokens
from ernie_local.packing import FORMATS, dequantize, pack_matrix
from tests.runtime.kernel_tolerances import BFLOAT16, EXACT, FLOAT16, relative_error
from tests.runtime.random_matrices import random_matrix

# Rows that end inside a tile and inside a program; columns that end inside a group and inside a step.
SHAPES = [(1, 40, 144), (2, 16, 16), (1, 16, 528), (3, 40, 272), (17, 88, 144)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("num_tokens", "rows", "columns"), SHAPES)
def test_linear_is_the_product_with_the_dequantized_matrix(
    name: str, num_tokens: int, rows: int, columns: int
) -> None:
    packed = pack_matrix(random_matrix(name, rows, columns, seed=rows))
    tokens = torch.randn(num_tokens, columns, generator=torch.Generator().manual_seed(columns))
    actual = multiply_tokens(tokens, packed, FORMATS[name], rows, TritonDevice())
    expected = reference.plain_linear(tokens, PackedMatrix(packed, name, rows))
    assert actual.dtype == torch.float32
    assert relative_error(actual, expected) < (EXACT if num_tokens <= 2 else FLOAT16)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_dequantized(name: str) -> None:
    matrix = random_matrix(name, 40, 144)
    row_ids = torch.tensor([39, 0, 17, 17])
    actual = look_up_rows(row_ids, pack_matrix(matrix), FORMATS[name], 144)
    torch.testing.assert_close(actual, dequantize(matrix)[row_ids], rtol=1e-6, atol=1e-6)


def test_no_tokens_make_no_rows() -> None:
    packed = pack_matrix(random_matrix("w4", 16, 64))
    assert multiply_tokens(torch.empty(0, 64), packed, FORMATS["w4"], 16, TritonDevice()).shape == (0, 16)
    assert look_up_rows(torch.empty(0, dtype=torch.int64), packed, FORMATS["w4"], 64).shape == (0, 64)


@pytest.mark.parametrize(
    ("gpu", "limit"),
    [
        (TritonDevice(torch.bfloat16), BFLOAT16),
        (TritonDevice(torch.float16, uses_tensor_cores=False), FLOAT16),
    ],
    ids=["bfloat16", "without tensor cores"],
)
def test_other_gpus_compute_the_same(gpu: TritonDevice, limit: float) -> None:
    packed = pack_matrix(random_matrix("w4", 72, 144))
    tokens = torch.randn(5, 144)
    expected = reference.plain_linear(tokens, PackedMatrix(packed, "w4", 72))
    assert relative_error(multiply_tokens(tokens, packed, FORMATS["w4"], 72, gpu), expected) < limit


def test_rows_beyond_float16_do_not_overflow() -> None:
    packed = pack_matrix(random_matrix("w4", 16, 144))
    tokens = torch.randn(4, 144) * torch.tensor([[1e7], [1.0], [4e4], [1e-3]])
    actual = multiply_tokens(tokens, packed, FORMATS["w4"], 16, TritonDevice())
    expected = reference.plain_linear(tokens, PackedMatrix(packed, "w4", 16))
    for row in range(4):
        assert relative_error(actual[row], expected[row]) < FLOAT16


@pytest.mark.parametrize("num_tokens", [1, 4])
def test_a_nan_stays_in_its_own_row(num_tokens: int) -> None:
    packed = pack_matrix(random_matrix("w8", 16, 144))
    tokens = torch.randn(num_tokens, 144)
    tokens[-1, 100] = torch.nan
    actual = multiply_tokens(tokens, packed, FORMATS["w8"], 16, TritonDevice())
    assert bool(actual[-1].isnan().all())
    assert bool(actual[:-1].isfinite().all())


def test_output_has_the_dtype_of_the_tokens() -> None:
    packed = pack_matrix(random_matrix("w4", 16, 64))
    assert (
        multiply_tokens(torch.randn(1, 64).half(), packed, FORMATS["w4"], 16, TritonDevice()).dtype
        == torch.float16
    )
