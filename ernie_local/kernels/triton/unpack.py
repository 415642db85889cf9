"""Codes, scales and zeros of packed tiles as numbers: the meaning of every bit, for all kernels.

A kernel looks at words: 32 bits, all that one row has in a block. Tensors here are (blocks, rows), rows
innermost, as they lie, so that a thread reads 16 bytes at a time. Knows no activations.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_offsets(rows: tl.tensor, SHAPE: tl.constexpr):
    """Bytes from the first tile to the tile of each of `rows`, (rows,) counted from that tile's first."""
    return rows // 16 * SHAPE.tile_bytes


@triton.jit
def load_words(tiles: tl.tensor, rows: tl.tensor, blocks: tl.tensor, inside: tl.tensor, SHAPE: tl.constexpr):
    """(blocks, rows) int32: every code (of w3, its low bits) that a row has in a block; inside: like it."""
    words = (tiles + SHAPE.metadata_bytes).to(tl.pointer_type(tl.int32))
    at = row_offsets(rows, SHAPE) // 4 + rows % 16
    return tl.load(words + (at[None, :] + blocks[:, None] * 16), mask=inside, other=0)


@triton.jit
def load_high_words(
    tiles: tl.tensor,
    rows: tl.tensor,
    blocks: tl.tensor,
    inside: tl.tensor,
    PLANE: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """(blocks, rows) int32, of w3: from bit `4 * (row % 8)` on the highest ones of a plane's four codes."""
    words = (tiles + SHAPE.high_plane_bytes).to(tl.pointer_type(tl.int32))
    at = row_offsets(rows, SHAPE) // 4 + rows % 16 // 8
    quads = blocks * SHAPE.planes + PLANE
    return tl.load(words + (at[None, :] + quads[:, None] * 2), mask=inside, other=0)


@triton.jit
def codes_as_fractions(
    words: tl.tensor,
    high_words: tl.tensor,
    rows: tl.tensor,
    PLANE: tl.constexpr,
    COLUMN: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """1 + code / 2^code_bits, (blocks, rows) float32, of block column 4 * PLANE + COLUMN.

    The code's bits become the highest of the fraction of a float: three instructions a weight with the
    multiplication, and no conversion, which runs at a quarter of the speed on older GPUs.
    """
    BITS: tl.constexpr = SHAPE.code_bits
    MOVE: tl.constexpr = 8 * COLUMN + BITS * PLANE - (23 - BITS)
    if MOVE >= 0:
        moved = words >> MOVE
    else:
        moved = words << (-MOVE)
    MASK: tl.constexpr = ((1 << BITS) - 1) << (23 - BITS)
    # The grid is one deep: the factor keeps 1.0 in a register, as one instruction takes only one constant.
    one = tl.num_programs(2) * 0x3F800000
    fractions = ((moved & MASK) | one).to(tl.float32, bitcast=True)
    if SHAPE.has_high_plane:
        fractions += ((high_words >> (rows % 8 * 4 + COLUMN)[None, :]) & 1).to(tl.float32)
    return fractions


@triton.jit
def load_scales_and_zeros(
    tiles: tl.tensor, rows: tl.tensor, blocks: tl.tensor, inside: tl.tensor, SHAPE: tl.constexpr
):
    """Two of (blocks, rows) float32: whole or fp16 scales without the row's, and zeros in units of codes."""
    groups = (blocks // SHAPE.group_blocks)[:, None]
    row = (rows % 16)[None, :]
    at = row_offsets(rows, SHAPE)[None, :]
    if SHAPE.is_symmetric:
        halves = tiles.to(tl.pointer_type(tl.float16))
        scales = tl.load(halves + (at // 2 + row + groups * 16), mask=inside, other=0.0).to(tl.float32)
        zeros = tl.full(scales.shape, 128.0, tl.float32)
    else:
        metadata = tiles + 32 + at
        if SHAPE.scale_bits == 8:
            scales = tl.load(metadata + (row + groups * 32), mask=inside, other=0).to(tl.float32)
            whole = tl.load(metadata + (row + groups * 32 + 16), mask=inside, other=0)
        elif SHAPE.scale_bits == 4:
            both = tl.load(metadata + (row + groups * 16), mask=inside, other=0)
            scales = (both & 15).to(tl.float32)
            whole = both >> 4
        else:
            first = tl.load(metadata + (row + groups * 24), mask=inside, other=0).to(tl.int32)
            second = tl.load(metadata + (row // 2 + groups * 24 + 16), mask=inside, other=0).to(tl.int32)
            scales = (first & 63).to(tl.float32)
            whole = (first >> 6) | (((second >> (row % 2 * 4)) & 15) << 2)
        zeros = whole.to(tl.float32) * (1.0 / SHAPE.zero_divisor)
    return scales, zeros


@triton.jit
def load_row_scales(tiles: tl.tensor, rows: tl.tensor, inside: tl.tensor, SHAPE: tl.constexpr):
    """(rows,) float32, ones for a symmetric format; inside: (rows,) bool."""
    if SHAPE.is_symmetric:
        return tl.full(rows.shape, 1.0, tl.float32)
    halves = tiles.to(tl.pointer_type(tl.float16))
    at = row_offsets(rows, SHAPE) // 2 + rows % 16
    return tl.load(halves + at, mask=inside, other=0.0).to(tl.float32)
