"""Multiplies tokens with a packed matrix, and looks up rows of one: `packed_linear` and `packed_rows`."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ernie_local.errors import UsageError
from ernie_local.kernels import gpu
from ernie_local.kernels.arguments import PackedMatrix, broken_token, check_packed_matrix, check_tokens
from ernie_local.kernels.native import BROKEN_TOKEN, DONE
from ernie_local.kernels.operators import native_or_reference, needs_no_dispatch, register
from ernie_local.kernels.reference import plain_linear, plain_rows
from ernie_local.packing import find_format


def packed_linear(tokens: Tensor, matrix: PackedMatrix) -> Tensor:
    """tokens @ matrix.T for a matrix with as many columns as `tokens`.

    tokens: (tokens, columns) float32 or bfloat16 -> (tokens, rows) in tokens' dtype. The CPU's kernels round
    tokens to int8, group by group. Raises UsageError or ModelUnusable, with the argument's name.
    """
    if needs_no_dispatch(tokens):
        return _linear_cpu(tokens, matrix)
    output: Tensor = torch.ops.ernie_local.packed_linear(tokens, *matrix)
    return output


def packed_rows(row_ids: Tensor, matrix: PackedMatrix, columns: int) -> Tensor:
    """Rows of a matrix, dequantized exactly. columns: of the matrix.

    row_ids: (count,) int64 -> (count, columns) float32. Raises as `packed_linear`.
    """
    output: Tensor = torch.ops.ernie_local.packed_rows(row_ids, *matrix, columns)
    return output


def _check_linear(tokens: Tensor, matrix: PackedMatrix) -> None:
    check_tokens("packed_linear", "tokens", tokens)
    check_packed_matrix("packed_linear", matrix, tokens.shape[1], tokens.device)


def _check_rows(row_ids: Tensor, matrix: PackedMatrix, columns: int) -> None:
    """row_ids: (at least 1,) int64 within the matrix; on a GPU their values are not looked at."""
    op = "packed_rows"
    check_packed_matrix(op, matrix, columns, row_ids.device)
    if not row_ids.is_cpu:
        return
    if row_ids.ndim != 1 or row_ids.dtype != torch.int64 or not len(row_ids):
        raise UsageError(
            f"{op}: row_ids is {row_ids.dtype} {tuple(row_ids.shape)}, wanted int64 (count,), at least 1",
            "rows are chosen by their numbers",
            "pass token ids as one row of int64",
        )
    lowest, highest = int(row_ids.min()), int(row_ids.max())
    if lowest < 0 or highest >= matrix.rows:
        raise UsageError(
            f"{op}: row_ids holds {lowest if lowest < 0 else highest}, rows are 0 to {matrix.rows - 1}",
            "there is no such row",
            "pass ids within the vocabulary",
        )


def _linear_cpu(tokens: Tensor, matrix: PackedMatrix) -> Tensor:
    if tokens.dtype != torch.float32:
        _check_linear(tokens, matrix)
        return _linear_cpu(tokens.float(), matrix).to(tokens.dtype)
    return native_or_reference(_linear_native, _check_linear, plain_linear, tokens, matrix)


def _linear_native(module: ModuleType, tokens: Tensor, matrix: PackedMatrix) -> Tensor | None:
    if tokens.ndim != 2 or matrix.rows < 1:
        return None
    # Named device and dtype: torch's defaults may be others.
    output = torch.empty(tokens.shape[0], matrix.rows, dtype=torch.float32, device="cpu")
    format_id = find_format(matrix.format_name).format_id
    outcome, index = module.packed_linear(tokens, matrix.packed, format_id, matrix.rows, output)
    if outcome == BROKEN_TOKEN:
        raise broken_token("packed_linear", "tokens", index)
    return output if outcome == DONE else None


def _rows_native(module: ModuleType, row_ids: Tensor, matrix: PackedMatrix, columns: int) -> Tensor | None:
    if row_ids.ndim != 1 or columns < 1:
        return None
    output = torch.empty(len(row_ids), columns, dtype=torch.float32, device="cpu")
    format_id = find_format(matrix.format_name).format_id
    is_done = module.packed_rows(matrix.packed, format_id, matrix.rows, row_ids, output)
    return output if is_done else None


def linear_on_gpu(tokens: Tensor, matrix: PackedMatrix) -> Tensor:
    """`packed_linear` on a GPU: by Triton, or by plain torch without it."""
    _check_linear(tokens, matrix)
    device = gpu.find_triton(tokens.device, matrix.gpu_kernels)
    if device is None:
        return plain_linear(tokens.float(), matrix).to(tokens.dtype)
    from ernie_local.kernels.triton.linear import multiply_tokens

    return multiply_tokens(tokens, matrix.packed, find_format(matrix.format_name), matrix.rows, device)


def rows_on_gpu(row_ids: Tensor, matrix: PackedMatrix, columns: int) -> Tensor:
    """`packed_rows` on a GPU: by Triton, or by plain torch without it."""
    _check_rows(row_ids, matrix, columns)
    if gpu.find_triton(row_ids.device, matrix.gpu_kernels) is None:
        return plain_rows(row_ids, matrix, columns)
    from ernie_local.kernels.triton.linear import look_up_rows

    return look_up_rows(row_ids.contiguous(), matrix.packed, find_format(matrix.format_name), columns)


def _linear_fake(tokens: Tensor, *matrix: Any) -> Tensor:
    return tokens.new_empty(tokens.shape[0], PackedMatrix(*matrix).rows)


def _rows_fake(row_ids: Tensor, *others: Any) -> Tensor:
    return row_ids.new_empty(row_ids.shape[0], others[-1], dtype=torch.float32)


register(
    'packed_linear(Tensor tokens, Tensor packed, str format_name, int rows, str gpu_kernels="auto") '
    "-> Tensor",
    (None, PackedMatrix),
    _linear_cpu,
    linear_on_gpu,
    _linear_fake,
)
register(
    "packed_rows(Tensor row_ids, Tensor packed, str format_name, int rows, str gpu_kernels, int columns) "
    "-> Tensor",
    (None, PackedMatrix, None),
    partial(native_or_reference, _rows_native, _check_rows, plain_rows),
    rows_on_gpu,
    _rows_fake,
)
