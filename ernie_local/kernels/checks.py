"""What the packed operators demand of their arguments, whichever code computes.

Every refusal names the operator, the argument and both numbers. Knows shapes and dtypes; of values only ids.
"""

from __future__ import annotations

import torch

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.packing import LowBitFormat

FLOAT_DTYPES = (torch.float32, torch.bfloat16)


def check_tokens(op: str, name: str, tokens: torch.Tensor) -> None:
    """tokens: (at least 1, columns) float32 or bfloat16."""
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.dtype not in FLOAT_DTYPES:
        raise UsageError(
            f"{op}: {name} is {tokens.dtype} {tuple(tokens.shape)}, wanted float32 or bfloat16 "
            "(tokens, columns) with at least 1 token",
            "a packed matrix is multiplied with rows of numbers",
            "reshape to two dimensions",
        )


def check_packed_matrix(
    op: str, packed: torch.Tensor, low_bit: LowBitFormat, rows: int, columns: int
) -> None:
    """packed: (matrix_bytes,) uint8."""
    expected = low_bit.matrix_bytes(rows, columns)
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() != expected:
        raise ModelUnusable(
            f"{op}: packed is {packed.dtype} {tuple(packed.shape)}, "
            f"a {low_bit.name} matrix of {rows} x {columns} takes {expected} bytes",
            "packed bytes, format and shape do not belong together",
            "verify the checkpoint",
        )


def check_row_ids(op: str, row_ids: torch.Tensor, rows: int) -> None:
    """row_ids: (at least 1,) int64 within the matrix."""
    if row_ids.ndim != 1 or row_ids.dtype != torch.int64 or not len(row_ids):
        raise UsageError(
            f"{op}: row_ids is {row_ids.dtype} {tuple(row_ids.shape)}, wanted int64 (count,), at least 1",
            "rows are chosen by their numbers",
            "pass token ids as one row of int64",
        )
    lowest, highest = int(row_ids.min()), int(row_ids.max())
    if lowest < 0 or highest >= rows:
        raise UsageError(
            f"{op}: row_ids holds {lowest if lowest < 0 else highest}, rows are 0 to {rows - 1}",
            "there is no such row",
            "pass ids within the vocabulary",
        )


def check_experts(
    op: str, tokens: torch.Tensor, slots: torch.Tensor, slot_ids: torch.Tensor, weights: torch.Tensor
) -> None:
    """slots: (slots, bytes) uint8; slot_ids: (tokens, top_k) int64 within them; weights: (tokens, top_k)."""
    check_tokens(op, "hidden", tokens)
    if slots.dtype != torch.uint8 or slots.ndim != 2:
        raise UsageError(
            f"{op}: slots is {slots.dtype} {tuple(slots.shape)}, wanted uint8 (slots, bytes)",
            "each slot holds one expert's page",
            "pass the pages of one bank as one tensor",
        )
    wanted = (tokens.shape[0], slot_ids.shape[-1])
    for name, tensor, dtype in (("slot_ids", slot_ids, torch.int64), ("weights", weights, tokens.dtype)):
        if tensor.dtype != dtype or tuple(tensor.shape) != wanted or not tensor.numel():
            raise UsageError(
                f"{op}: {name} is {tensor.dtype} {tuple(tensor.shape)}, wanted {dtype} {wanted}",
                "every token names its experts, and a weight for each",
                "pass the router's choices as they are",
            )
    lowest, highest = int(slot_ids.min()), int(slot_ids.max())
    if lowest < 0 or highest >= slots.shape[0]:
        raise UsageError(
            f"{op}: slot_ids holds {lowest if lowest < 0 else highest}, slots are 0 to {slots.shape[0] - 1}",
            "there is no such expert",
            "pass ids within the bank",
        )


def broken_token(op: str, name: str, index: int) -> UsageError:
    """The error for a token with a NaN or an infinity."""
    return UsageError(
        f"{op}: {name} holds a NaN or an infinity in token {index}",
        "int8 has no such number, and every sum would be lost",
        "run in float32, and check the weights with `verify`",
    )


def broken_page(op: str, slot: int, hidden_size: int) -> ModelUnusable:
    """The error for a page that the kernels cannot read."""
    return ModelUnusable(
        f"{op}: slot {slot} holds no page of hidden size {hidden_size} in full",
        "the page is damaged, cut, of another version or of another model",
        "verify the checkpoint",
    )
