"""Turns packed tiles into numbers, and multiplies some of their rows: with one vector, or with many tokens.

A kernel looks at words: 32 bits, all that one row has in a block. Tensors are (blocks, rows), rows innermost,
as they lie, so that a thread reads 16 bytes at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ernie_local.packing.formats import TRELLIS_DELAYS, TRELLIS_LEVELS, TRELLIS_SCALES, TRELLIS_ZERO


def _words(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Four bytes in each, as int32."""
    fours = (numbers[i : i + 4] for i in range(0, len(numbers), 4))
    return tuple(int.from_bytes(bytes(four), "little", signed=True) for four in fours)


_DELAYS = tl.constexpr(TRELLIS_DELAYS)
_FIRST_LEVELS, _LAST_LEVELS = map(tl.constexpr, _words(TRELLIS_LEVELS))
_SCALE_WORDS = tl.constexpr(_words(TRELLIS_SCALES))
_TRELLIS_ZERO = tl.constexpr(float(TRELLIS_ZERO))


@triton.jit
def row_offsets(rows, SHAPE: tl.constexpr):
    """Bytes from the first tile to the tile of each of `rows`, (rows,) counted from that tile's first."""
    return rows // 16 * SHAPE.tile_bytes


@triton.jit
def load_words(tiles, rows, blocks, inside, SHAPE: tl.constexpr):
    """Two of (blocks, rows) int32: every code (of w3, its low bits) of a row in a block; inside: like it.

    Of a trellis the parity and the second bit of each step; the other words have the delayed bit in the
    parity's place. Other formats have no other words: the first again.
    """
    pointers = (tiles + SHAPE.metadata_bytes).to(tl.pointer_type(tl.int32))
    at = (row_offsets(rows, SHAPE) // 4 + rows % 16)[None, :]
    words = tl.load(pointers + (at + blocks[:, None] * 16), mask=inside, other=0)
    earlier = words
    if SHAPE.is_trellis:
        earlier = tl.load(pointers + (at + _blocks_before(blocks, _DELAYS[0], SHAPE)), mask=inside, other=0)
        for i in tl.static_range(1, 3):
            before = at + _blocks_before(blocks, _DELAYS[i], SHAPE)
            words ^= tl.load(pointers + before, mask=inside, other=0) & 0x55555555
    return words, earlier


@triton.jit
def _blocks_before(blocks, DELAY: tl.constexpr, SHAPE: tl.constexpr):
    """(blocks, 1) words from the first block to that DELAY before each: before the first lies the last."""
    return ((blocks + (SHAPE.num_blocks - 1) * DELAY) % SHAPE.num_blocks)[:, None] * 16


@triton.jit
def load_high_words(earlier, tiles, rows, quads, inside, SHAPE: tl.constexpr):
    """(blocks, rows) int32, of w3: from bit `4 * (row % 8)` on the highest ones of four codes.

    quads: (blocks,), which four codes of a row, `blocks * planes + plane`. Of other formats, whose codes lie
    together, the second words of load_words.
    """
    if not SHAPE.has_high_plane:
        return earlier
    high_words = (tiles + SHAPE.high_plane_bytes).to(tl.pointer_type(tl.int32))
    at = row_offsets(rows, SHAPE) // 4 + rows % 16 // 8
    return tl.load(high_words + (at[None, :] + quads[:, None] * 2), mask=inside, other=0)


@triton.jit
def codes_as_fractions(words, high_words, rows, AT: tl.constexpr, SHAPE: tl.constexpr):
    """1 + code / code_step, (blocks, rows) float32, of the blocks' column AT; or its level instead of a code.

    The code's bits become the highest of the fraction of a float: three instructions a weight with the
    multiplication, and no conversion, which runs at a quarter of the speed on older GPUs.
    """
    BITS: tl.constexpr = SHAPE.code_bits
    PLANE: tl.constexpr = AT // 4
    COLUMN: tl.constexpr = AT % 4
    # The grid is one deep: the factor keeps 1.0 in a register, as one instruction takes only one constant.
    one = tl.num_programs(2) * 0x3F800000
    if SHAPE.is_trellis:
        PLACE: tl.constexpr = 8 * COLUMN + BITS * PLANE
        four = tl.where(((high_words >> PLACE) & 1) != 0, _LAST_LEVELS, _FIRST_LEVELS)
        level = (four >> (((words >> PLACE) & 3) * 8)) & 31
        return ((level << 18) | one).to(tl.float32, bitcast=True)
    MOVE: tl.constexpr = 8 * COLUMN + BITS * PLANE - (23 - BITS)
    if MOVE >= 0:
        moved = words >> MOVE
    else:
        moved = words << (-MOVE)
    MASK: tl.constexpr = ((1 << BITS) - 1) << (23 - BITS)
    fractions = ((moved & MASK) | one).to(tl.float32, bitcast=True)
    if SHAPE.has_high_plane:
        fractions += ((high_words >> (rows % 8 * 4 + COLUMN)[None, :]) & 1).to(tl.float32)
    return fractions


@triton.jit
def load_scales_and_zeros(tiles, rows, blocks, inside, SHAPE: tl.constexpr):
    """Two of (blocks, rows) float32: whole or fp16 scales without the row's, and zeros in units of codes."""
    groups = (blocks // SHAPE.group_blocks)[:, None]
    row = (rows % 16)[None, :]
    at = row_offsets(rows, SHAPE)[None, :]
    if SHAPE.is_trellis:
        pairs = tl.load(tiles + 32 + at + (row // 2 + groups * 8), mask=inside, other=0).to(tl.int32)
        scales = _numbers_of_scales((pairs >> (row % 2 * 4)) & 15)
        zeros = tl.full(scales.shape, _TRELLIS_ZERO, tl.float32)
    elif SHAPE.has_fp16_scales:
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
def _numbers_of_scales(places):
    """places: int32, 0 to 15 -> TRELLIS_SCALES there, float32. Four of them are in a word."""
    first = tl.where(places < 4, _SCALE_WORDS[0], _SCALE_WORDS[1])
    last = tl.where(places < 12, _SCALE_WORDS[2], _SCALE_WORDS[3])
    return ((tl.where(places < 8, first, last) >> (places % 4 * 8)) & 255).to(tl.float32)


@triton.jit
def load_row_scales(tiles, rows, inside, SHAPE: tl.constexpr):
    """(rows,) float32, ones where groups have fp16 scales; inside: (rows,) bool."""
    if SHAPE.has_fp16_scales:
        return tl.full(rows.shape, 1.0, tl.float32)
    halves = tiles.to(tl.pointer_type(tl.float16))
    at = row_offsets(rows, SHAPE) // 2 + rows % 16
    return tl.load(halves + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def multiply_one(tiles, vector, SHAPE: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """(ROWS,) float32. tiles: where ROWS / 16 whole tiles begin; vector: where (columns,) of any float begin.

    BLOCKS at a time, a power of two.
    """
    STEP: tl.constexpr = SHAPE.code_step
    PLANES: tl.constexpr = SHAPE.planes
    rows = tl.arange(0, ROWS)
    sums = tl.zeros([BLOCKS, ROWS], tl.float32)
    for start in range(0, SHAPE.num_blocks, BLOCKS):
        blocks = start + tl.arange(0, BLOCKS)
        is_block = blocks < SHAPE.num_blocks
        inside = is_block[:, None]
        words, earlier = load_words(tiles, rows, blocks, inside, SHAPE)
        scales, zeros = load_scales_and_zeros(tiles, rows, blocks, inside, SHAPE)
        # sum(scale * (code - zero) * x), and code is STEP * (fraction - 1)
        products = tl.zeros([BLOCKS, ROWS], tl.float32)
        vector_sums = tl.zeros([BLOCKS], tl.float32)
        for plane in tl.static_range(PLANES):
            high_words = load_high_words(earlier, tiles, rows, blocks * PLANES + plane, inside, SHAPE)
            for column in tl.static_range(4):
                at = blocks * SHAPE.block_columns + (4 * plane + column)
                x = tl.load(vector + at, mask=is_block, other=0.0).to(tl.float32)
                products += (
                    codes_as_fractions(words, high_words, rows, 4 * plane + column, SHAPE) * x[:, None]
                )
                vector_sums += x
        sums += scales * (STEP * products - (STEP + zeros) * vector_sums[:, None])
    return tl.sum(sums, axis=0) * load_row_scales(tiles, rows, rows < ROWS, SHAPE)


def blocks_at_a_time(num_blocks: int, rows: int) -> int:
    """For `multiply_one` in 4 warps: 32 bytes of codes a thread, or less where a row has no more."""
    return min(1024 // rows, int(triton.next_power_of_2(num_blocks)))


# fp16 scales of w8 are small numbers: so much larger, they keep their digits as float16 down to a scale of
# 4e-6, and stay finite up to one of 31. Whole scales are at most 255, and need nothing.
_FP16_SCALE_FACTOR = tl.constexpr(16.0)


@triton.jit
def multiply_many(
    tiles,
    num_rows,
    ordered,
    row_scales,
    token_rows,
    is_token,
    SHAPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """(tokens, ROWS) float32. tiles: where whole tiles begin, of which `num_rows` rows are there.

    ordered, row_scales: activations as order_by_plane leaves them; token_rows: (tokens,) int64, the rows of
    them to multiply, where is_token. Weights are rounded to the activations' dtype without the row's scale.
    """
    STEP: tl.constexpr = SHAPE.code_step
    PLANES: tl.constexpr = SHAPE.planes
    FACTOR: tl.constexpr = _FP16_SCALE_FACTOR if SHAPE.has_fp16_scales else 1.0
    rows = tl.arange(0, ROWS)
    is_row = rows < num_rows
    sums = tl.zeros([token_rows.shape[0], ROWS], tl.float32)
    tokens = ordered + token_rows * SHAPE.columns
    for start in range(0, SHAPE.num_blocks, BLOCKS):
        blocks = start + tl.arange(0, BLOCKS)
        is_block = blocks < SHAPE.num_blocks
        inside = is_block[:, None] & is_row[None, :]
        words, earlier = load_words(tiles, rows, blocks, inside, SHAPE)
        scales, zeros = load_scales_and_zeros(tiles, rows, blocks, inside, SHAPE)
        steps = scales * (STEP * FACTOR)
        offsets = scales * (STEP + zeros) * FACTOR
        for plane in tl.static_range(PLANES):
            high_words = load_high_words(earlier, tiles, rows, blocks * PLANES + plane, inside, SHAPE)
            for column in tl.static_range(4):
                at = (4 * plane + column) * SHAPE.num_blocks + blocks
                x = tl.load(
                    tokens[:, None] + at[None, :], mask=is_token[:, None] & is_block[None, :], other=0.0
                )  # (tokens, blocks)
                fractions = codes_as_fractions(words, high_words, rows, 4 * plane + column, SHAPE)
                weights = fractions * steps - offsets
                sums = tl.dot(x, weights.to(x.dtype), sums)
    by_row = load_row_scales(tiles, rows, is_row, SHAPE) * (1.0 / FACTOR)
    by_token = tl.load(row_scales + token_rows, mask=is_token, other=0.0)
    return sums * by_token[:, None] * by_row[None, :]
