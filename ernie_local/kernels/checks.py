"""Checks what several operators ask of their arguments, and words the refusals.

Every refusal names the operator, the argument and both numbers.
"""

from __future__ import annotations

import torch

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.kernels.arguments import SHARED_EXPERT, PackedMatrix
from ernie_local.packing import find_format

FLOAT_DTYPES = (torch.float32, torch.bfloat16)


def check_tokens(op: str, name: str, tokens: torch.Tensor) -> None:
    """Raise UsageError unless tokens is (at least 1, columns) float32 or bfloat16."""
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.dtype not in FLOAT_DTYPES:
        raise UsageError(
            f"{op}: {name} is {tokens.dtype} {tuple(tokens.shape)}, wanted float32 or bfloat16 "
            "(tokens, columns) with at least 1 token",
            "a packed matrix is multiplied with rows of numbers",
            "reshape to two dimensions",
        )


def check_packed_matrix(op: str, matrix: PackedMatrix, columns: int, device: torch.device) -> None:
    """Raise ModelUnusable unless its bytes are those of a matrix of this format and shape, on this device."""
    packed, low_bit = matrix.packed, find_format(matrix.format_name)
    expected = low_bit.matrix_bytes(matrix.rows, columns)
    is_bytes = packed.dtype == torch.uint8 and packed.ndim == 1 and packed.numel() == expected
    if not is_bytes or packed.device != device:
        raise ModelUnusable(
            f"{op}: packed is {packed.dtype} {tuple(packed.shape)} on {packed.device}, "
            f"a {low_bit.name} matrix of {matrix.rows} x {columns} takes {expected} bytes on {device}",
            "packed bytes, format and shape do not belong together",
            "verify the checkpoint",
        )


def describe_tensor(tensor: torch.Tensor) -> str:
    """Dtype, shape, and the device unless it is the CPU."""
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{tensor.dtype} {tuple(tensor.shape)}{device}"


def check_float_rows(op: str, name: str, tensor: torch.Tensor, shape: str) -> None:
    """Raise UsageError unless tensor is float32 with two dimensions; shape: their names, for the message."""
    if tensor.ndim != 2 or tensor.dtype != torch.float32:
        raise UsageError(
            f"{op}: {name} is {describe_tensor(tensor)}, wanted torch.float32 {shape}",
            "the operator takes rows of float32",
            "reshape to two dimensions; let torch compute other dtypes",
        )


def check_tensor(
    op: str,
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Raise UsageError unless tensor has this shape and dtype and lies on this device."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        raise UsageError(
            f"{op}: {name} is {describe_tensor(tensor)}, wanted {dtype} {shape}",
            "its shape follows from the other arguments",
            "pass tensors of one layer of one model, on one device",
        )


def broken_token(op: str, name: str, index: int) -> UsageError:
    """The error for a token with a NaN or an infinity."""
    return UsageError(
        f"{op}: {name} holds a NaN or an infinity in token {index}",
        "int8 has no such number, and every sum would be lost",
        "run in float32, and check the weights with `verify`",
    )


def broken_page(op: str, expert_id: int, hidden_size: int) -> ModelUnusable:
    """The error for a page that the kernels cannot read."""
    where = "shared_page" if expert_id == SHARED_EXPERT else f"the slot of expert {expert_id}"
    return ModelUnusable(
        f"{op}: {where} holds no page of hidden size {hidden_size} in full",
        "the page is damaged, cut, of another version or of another model",
        "verify the checkpoint",
    )
