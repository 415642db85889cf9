"""Keeps float16 from overflowing: a row with too large numbers is halved as often as it takes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halvings_below_32768(largest: tl.tensor):
    """Two float32 of largest's shape: powers of two to multiply numbers with before, and their product after.

    largest: float32, not negative, the largest size of a number in the row; 1 and 1 where it is below 2^15.
    """
    exponent = largest.to(tl.int32, bitcast=True) >> 23  # of a float32 it is biased by 127
    halvings = tl.maximum(exponent - (127 + 14), 0)
    before = ((127 - halvings) << 23).to(tl.float32, bitcast=True)
    after = ((127 + halvings) << 23).to(tl.float32, bitcast=True)
    return before, after
