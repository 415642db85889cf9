"""Multiplies packed matrices with tokens, few in float32 and many on tensor cores, and looks up rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ernie_local.kernels.triton.activations import ordered
from ernie_local.kernels.triton.device import TileShape, TritonDevice
from ernie_local.kernels.triton.unpack import (
    blocks_at_a_time,
    codes_as_fractions,
    load_high_words,
    load_row_scales,
    load_scales_and_zeros,
    load_words,
    multiply_many,
    multiply_one,
)
from ernie_local.packing import TILE_ROWS, LowBitFormat

# More tokens than these share what is read of the matrix.
MOST_ONE_BY_ONE = 2
_BLOCKS_OF_ROWS = 128


def multiply_tokens(
    tokens: Tensor, packed: Tensor, low_bit: LowBitFormat, rows: int, device: TritonDevice
) -> Tensor:
    """As the operator packed_linear, on one GPU.

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
    inputs = ordered(tokens, shape.block_columns, device.dtype)
    sizes = device.sizes_for_many(shape, num_tokens)
    linear_of_many[(triton.cdiv(rows, sizes["ROWS"]), triton.cdiv(num_tokens, sizes["TOKENS"]))](
        *inputs, packed, output, num_rows=rows, num_tokens=num_tokens, SHAPE=shape, **sizes
    )
    return output


@triton.jit(do_not_specialize=["num_rows"])
def linear_of_one(tokens, packed, output, num_rows, SHAPE: tl.constexpr, BLOCKS: tl.constexpr):
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
    ordered_tokens,
    row_scales,
    packed,
    output,
    num_rows,
    num_tokens,
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


def look_up_rows(row_ids: Tensor, packed: Tensor, low_bit: LowBitFormat, columns: int) -> Tensor:
    """As the operator packed_rows, on one GPU: row_ids (count,) int64 -> (count, columns) float32."""
    shape = TileShape.of(low_bit, columns)
    output = torch.empty(len(row_ids), columns, dtype=torch.float32, device=row_ids.device)
    if len(row_ids):
        grid = (len(row_ids), triton.cdiv(shape.num_blocks, _BLOCKS_OF_ROWS))
        unpack_rows[grid](row_ids, packed, output, SHAPE=shape, BLOCKS=_BLOCKS_OF_ROWS)
    return output


@triton.jit
def unpack_rows(row_ids, packed, output, SHAPE: tl.constexpr, BLOCKS: tl.constexpr):
    """Program (index of a row, BLOCKS blocks)."""
    STEP: tl.constexpr = SHAPE.code_step
    PLANES: tl.constexpr = SHAPE.planes
    index = tl.program_id(0)
    row_id = tl.load(row_ids + index)
    tiles = packed + row_id // 16 * SHAPE.tile_bytes
    rows = tl.arange(0, 1) + (row_id % 16).to(tl.int32)
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    inside = (blocks < SHAPE.num_blocks)[:, None]
    words, earlier = load_words(tiles, rows, blocks, inside, SHAPE)
    scales, zeros = load_scales_and_zeros(tiles, rows, blocks, inside, SHAPE)
    row_scales = load_row_scales(tiles, rows, rows < 16, SHAPE)[None, :]
    start = output + index.to(tl.int64) * SHAPE.columns
    for plane in tl.static_range(PLANES):
        high_words = load_high_words(earlier, tiles, rows, blocks * PLANES + plane, inside, SHAPE)
        for column in tl.static_range(4):
            codes = (codes_as_fractions(words, high_words, rows, 4 * plane + column, SHAPE) - 1.0) * STEP
            at = blocks * SHAPE.block_columns + (4 * plane + column)
            tl.store(start + at[:, None], (codes - zeros) * (scales * row_scales), mask=inside)
