"""Adds what an adapter adds to products with a matrix, plain or packed: `add_low_rank`."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ernie_local.errors import UsageError
from ernie_local.kernels.arguments import LowRankParts, describe_tensor
from ernie_local.kernels.operators import needs_no_dispatch, ready_module, register, suits_native
from ernie_local.kernels.reference import plain_low_rank
from ernie_local.packing import TILE_ROWS

_OP = "add_low_rank"


def add_low_rank(output: Tensor, tokens: Tensor, parts: LowRankParts) -> None:
    """Add tokens @ inward.T @ outward to the rows of each part.

    tokens: (tokens, columns); output: (tokens, rows), of the same dtype, without gaps. Parts in bfloat16 are
    multiplied in float32 with float32 tokens; a token's sums do not depend on others. UsageError for shapes
    that do not belong together.
    """
    if needs_no_dispatch(tokens):
        _add_cpu(output, tokens, parts)
    else:
        torch.ops.ernie_local.add_low_rank(output, tokens, *parts)


def in_tiles(rows_by_rank: Tensor) -> Tensor:
    """(rows, rank) as outward matrices of LowRankParts lie: (tiles, rank, 16), filled up with zeros."""
    num_rows, rank = rows_by_rank.shape
    num_tiles = -(-num_rows // TILE_ROWS)
    padded = rows_by_rank.new_zeros(num_tiles * TILE_ROWS, rank)
    padded[:num_rows] = rows_by_rank
    return padded.view(num_tiles, TILE_ROWS, rank).transpose(1, 2).contiguous()


def _check_low_rank(output: Tensor, tokens: Tensor, parts: LowRankParts) -> None:
    if (
        tokens.ndim != 2
        or output.ndim != 2
        or len(output) != len(tokens)
        or output.dtype != tokens.dtype
        or not output.is_contiguous()
    ):
        raise UsageError(
            f"{_OP}: output is {describe_tensor(output)} for tokens {describe_tensor(tokens)}",
            "each token has a row of sums, of its dtype and without gaps, to which is added",
            "pass the product that the adapter adds to",
        )
    for inward, outward, first, count in zip(*parts, strict=True):
        is_part = inward.ndim == 2 and outward.ndim == 3 and count >= 1 and first >= 0
        if (
            not is_part
            or inward.shape[1] != tokens.shape[1]
            or tuple(outward.shape) != (-(-count // TILE_ROWS), len(inward), TILE_ROWS)
            or first + count > output.shape[1]
        ):
            raise UsageError(
                f"{_OP}: inward is {describe_tensor(inward)} and outward {describe_tensor(outward)}, for "
                f"rows {first} to {first + count - 1} of {output.shape[1]} and {tokens.shape[1]} columns",
                "wanted (rank, columns) and (tiles of 16 rows, rank, 16)",
                "pass tables that were made for this matrix",
            )


def _add_native(module: ModuleType, output: Tensor, tokens: Tensor, parts: LowRankParts) -> bool:
    done: bool = module.add_low_rank(output, tokens, *parts)
    return done


def _add_cpu(output: Tensor, tokens: Tensor, parts: LowRankParts) -> None:
    if suits_native(tokens) and all(one.dtype == torch.bfloat16 for one in parts.inward):
        module = ready_module()
        if module is not None and _add_native(module, output, tokens.contiguous(), parts):
            return
    add_plain(output, tokens, parts)


def add_plain(output: Tensor, tokens: Tensor, parts: LowRankParts) -> None:
    """`add_low_rank` by torch, on any device."""
    _check_low_rank(output, tokens, parts)
    plain_low_rank(output, tokens, parts)


register(
    "add_low_rank(Tensor(a!) output, Tensor tokens, Tensor[] inward, Tensor[] outward, int[] first_rows, "
    "int[] num_rows) -> ()",
    (None, None, LowRankParts),
    _add_cpu,
    add_plain,
    fake=lambda *_: None,
)
