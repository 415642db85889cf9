"""Products of packed matrices with tokens: few in float32, many on tensor cores. Kernels and their start."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ernie_local.kernels.triton.gpu import Gpu
from ernie_local.kernels.triton.multiply_many import multiply_many
from ernie_local.kernels.triton.multiply_one import blocks_at_a_time, multiply_one
from ernie_local.kernels.triton.ordered import ordered
from ernie_local.kernels.triton.tile_shape import TileShape
from ernie_local.packing import TILE_ROWS, LowBitFormat

# More tokens than these share what is read of the matrix.
MOST_ONE_BY_ONE = 2


def packed_linear(
    tokens: torch.Tensor,
    packed: torch.Tensor,
    low_bit: LowBitFormat,
    rows: int,
    gpu: Gpu,
) -> torch.Tensor:
    """As the operator of this name, on one GPU.

    tokens: (tokens, columns) of any float; packed: (matrix_bytes,) uint8 -> (tokens, rows) in tokens' dtype.
    More tokens than MOST_ONE_BY_ONE are rounded to the GPU's dtype, fewer are multiplied in float32.
    """
    num_tokens, columns = tokens.shape
    shape = TileShape.of(low_bit, columns)
    output = torch.empty(num_tokens, rows, dtype=tokens.dtype, device=tokens.device)
    if not num_tokens:
        return output
    tokens = tokens.contiguous()
    if num_tokens <= MOST_ONE_BY_ONE:
        blocks = blocks_at_a_time(shape.num_blocks, TILE_ROWS)
        linear_of_one[(triton.cdiv(rows, TILE_ROWS), num_tokens)](
            tokens, packed, output, num_rows=rows, SHAPE=shape, BLOCKS=blocks
        )
        return output
    inputs = ordered(tokens, shape.block_columns, gpu.dtype)
    sizes = gpu.sizes_for_many(shape, num_tokens)
    linear_of_many[(triton.cdiv(rows, sizes["ROWS"]), triton.cdiv(num_tokens, sizes["TOKENS"]))](
        inputs.numbers,
        inputs.row_scales,
        packed,
        output,
        num_rows=rows,
        num_tokens=num_tokens,
        SHAPE=shape,
        **sizes,
    )
    return output


@triton.jit(do_not_specialize=["num_rows"])
def linear_of_one(
    tokens: tl.tensor,
    packed: tl.tensor,
    output: tl.tensor,
    num_rows: tl.tensor,
    SHAPE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Program (tile of 16 rows, token)."""
    tile = tl.program_id(0)
    token = tl.program_id(1)
    tiles = packed + tile.to(tl.int64) * SHAPE.tile_bytes
    products = multiply_one(tiles, tokens + token * SHAPE.columns, SHAPE, 16, BLOCKS)
    rows = tile * 16 + tl.arange(0, 16)
    result = products.to(output.dtype.element_ty)
    tl.store(output + token.to(tl.int64) * num_rows + rows, result, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_tokens"])
def linear_of_many(
    ordered_tokens: tl.tensor,
    row_scales: tl.tensor,
    packed: tl.tensor,
    output: tl.tensor,
    num_rows: tl.tensor,
    num_tokens: tl.tensor,
    SHAPE: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Program (ROWS rows, TOKENS tokens); ordered_tokens, row_scales: as order_by_plane leaves them."""
    first = tl.program_id(0) * ROWS
    tiles = packed + (first // 16).to(tl.int64) * SHAPE.tile_bytes
    tokens = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    is_token = tokens < num_tokens
    padded_rows = (num_rows + 15) // 16 * 16 - first
    products = multiply_many(
        tiles, padded_rows, ordered_tokens, row_scales, tokens, is_token, SHAPE, ROWS, BLOCKS
    )
    rows = first + tl.arange(0, ROWS)
    inside = is_token[:, None] & (rows < num_rows)[None, :]
    result = products.to(output.dtype.element_ty)
    tl.store(output + tokens[:, None] * num_rows + rows[None, :], result, mask=inside)
