"""Some rows of a packed matrix times many tokens, 16-bit with float32 sums: what prefill is made of."""

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

# fp16 scales of w8 are small numbers: so much larger, they keep their digits as float16 down to a scale of
# 4e-6, and stay finite up to one of 31. Whole scales are at most 255, and need nothing.
_FP16_SCALE_FACTOR = tl.constexpr(16.0)


@triton.jit
def multiply_many(
    tiles: tl.tensor,
    num_rows: tl.tensor,
    ordered: tl.tensor,
    row_scales: tl.tensor,
    token_rows: tl.tensor,
    is_token: tl.tensor,
    SHAPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """(tokens, ROWS) float32. tiles: where whole tiles begin, of which `num_rows` rows are there.

    ordered, row_scales: activations as order_by_plane leaves them; token_rows: (tokens,) int64, the rows of
    them to multiply, where is_token. Weights are rounded to the activations' dtype without the row's scale.
    """
    STEP: tl.constexpr = 1 << SHAPE.code_bits
    PLANES: tl.constexpr = SHAPE.planes
    FACTOR: tl.constexpr = _FP16_SCALE_FACTOR if SHAPE.is_symmetric else 1.0
    rows = tl.arange(0, ROWS)
    is_row = rows < num_rows
    sums = tl.zeros([token_rows.shape[0], ROWS], tl.float32)
    tokens = ordered + token_rows * SHAPE.columns
    for start in range(0, SHAPE.num_blocks, BLOCKS):
        blocks = start + tl.arange(0, BLOCKS)
        is_block = blocks < SHAPE.num_blocks
        inside = is_block[:, None] & is_row[None, :]
        words = load_words(tiles, rows, blocks, inside, SHAPE)
        scales, zeros = load_scales_and_zeros(tiles, rows, blocks, inside, SHAPE)
        steps = scales * (STEP * FACTOR)
        offsets = scales * (STEP + zeros) * FACTOR
        for plane in tl.static_range(PLANES):
            high_words = words
            if SHAPE.has_high_plane:
                high_words = load_high_words(tiles, rows, blocks, inside, plane, SHAPE)
            for column in tl.static_range(4):
                at = (4 * plane + column) * SHAPE.num_blocks + blocks
                x = tl.load(
                    tokens[:, None] + at[None, :], mask=is_token[:, None] & is_block[None, :], other=0.0
                )  # (tokens, blocks)
                fractions = codes_as_fractions(words, high_words, rows, plane, column, SHAPE)
                weights = fractions * steps - offsets
                sums = tl.dot(x, weights.to(x.dtype), sums)
    by_row = load_row_scales(tiles, rows, is_row, SHAPE) * (1.0 / FACTOR)
    by_token = tl.load(row_scales + token_rows, mask=is_token, other=0.0)
    return sums * by_token[:, None] * by_row[None, :]
