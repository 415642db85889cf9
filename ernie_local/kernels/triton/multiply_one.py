"""Some rows of a packed matrix times one vector, in float32: what decode is made of.

Every thread adds up its own blocks from first to last, then threads add theirs in a fixed tree: the same
numbers give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ernie_local.kernels.triton.unpack import (
    codes_as_fractions,
    load_high_words,
    load_row_scales,
    load_scales_and_zeros,
    load_words,
)


@triton.jit
def multiply_one(
    tiles: tl.tensor,
    vector: tl.tensor,
    SHAPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """(ROWS,) float32. tiles: where ROWS / 16 whole tiles begin; vector: where (columns,) of any float begin.

    BLOCKS at a time, a power of two.
    """
    STEP: tl.constexpr = 1 << SHAPE.code_bits
    PLANES: tl.constexpr = SHAPE.planes
    rows = tl.arange(0, ROWS)
    sums = tl.zeros([BLOCKS, ROWS], tl.float32)
    for start in range(0, SHAPE.num_blocks, BLOCKS):
        blocks = start + tl.arange(0, BLOCKS)
        is_block = blocks < SHAPE.num_blocks
        inside = is_block[:, None]
        words = load_words(tiles, rows, blocks, inside, SHAPE)
        scales, zeros = load_scales_and_zeros(tiles, rows, blocks, inside, SHAPE)
        # sum(scale * (code - zero) * x), and code is STEP * (fraction - 1)
        products = tl.zeros([BLOCKS, ROWS], tl.float32)
        vector_sums = tl.zeros([BLOCKS], tl.float32)
        for plane in tl.static_range(PLANES):
            high_words = words
            if SHAPE.has_high_plane:
                high_words = load_high_words(tiles, rows, blocks, inside, plane, SHAPE)
            for column in tl.static_range(4):
                at = blocks * SHAPE.block_columns + (4 * plane + column)
                x = tl.load(vector + at, mask=is_block, other=0.0).to(tl.float32)
                products += codes_as_fractions(words, high_words, rows, plane, column, SHAPE) * x[:, None]
                vector_sums += x
        sums += scales * (STEP * products - (STEP + zeros) * vector_sums[:, None])
    return tl.sum(sums, axis=0) * load_row_scales(tiles, rows, rows < ROWS, SHAPE)


def blocks_at_a_time(num_blocks: int, rows: int) -> int:
    """For `multiply_one` in 4 warps: 32 bytes of codes a thread, or less where a row has no more."""
    return min(1024 // rows, int(triton.next_power_of_2(num_blocks)))
