"""Rows of a packed matrix as float32: an embedding. Kernel and its start."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ernie_local.kernels.triton.tile_shape import TileShape
from ernie_local.kernels.triton.unpack import (
    codes_as_fractions,
    load_high_words,
    load_row_scales,
    load_scales_and_zeros,
    load_words,
)
from ernie_local.packing import LowBitFormat

_BLOCKS = 128


def packed_rows(
    row_ids: torch.Tensor, packed: torch.Tensor, low_bit: LowBitFormat, columns: int
) -> torch.Tensor:
    """row_ids: (count,) int64; packed: (matrix_bytes,) uint8 -> (count, columns) float32."""
    shape = TileShape.of(low_bit, columns)
    output = torch.empty(len(row_ids), columns, dtype=torch.float32, device=row_ids.device)
    if len(row_ids):
        grid = (len(row_ids), triton.cdiv(shape.num_blocks, _BLOCKS))
        unpack_rows[grid](row_ids, packed, output, SHAPE=shape, BLOCKS=_BLOCKS)
    return output


@triton.jit
def unpack_rows(
    row_ids: tl.tensor,
    packed: tl.tensor,
    output: tl.tensor,
    SHAPE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Program (index of a row, BLOCKS blocks)."""
    STEP: tl.constexpr = 1 << SHAPE.code_bits
    PLANES: tl.constexpr = SHAPE.planes
    index = tl.program_id(0)
    row_id = tl.load(row_ids + index)
    tiles = packed + row_id // 16 * SHAPE.tile_bytes
    rows = tl.arange(0, 1) + (row_id % 16).to(tl.int32)
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    inside = (blocks < SHAPE.num_blocks)[:, None]
    words = load_words(tiles, rows, blocks, inside, SHAPE)
    scales, zeros = load_scales_and_zeros(tiles, rows, blocks, inside, SHAPE)
    row_scales = load_row_scales(tiles, rows, rows < 16, SHAPE)[None, :]
    start = output + index.to(tl.int64) * SHAPE.columns
    for plane in tl.static_range(PLANES):
        high_words = words
        if SHAPE.has_high_plane:
            high_words = load_high_words(tiles, rows, blocks, inside, plane, SHAPE)
        for column in tl.static_range(4):
            codes = (codes_as_fractions(words, high_words, rows, plane, column, SHAPE) - 1.0) * STEP
            at = blocks * SHAPE.block_columns + (4 * plane + column)
            tl.store(start + at[:, None], (codes - zeros) * (scales * row_scales), mask=inside)
