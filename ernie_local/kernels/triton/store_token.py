"""The new token's queries, keys and values: turned, and the latter two stored in the cache's format."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _round(numbers: tl.tensor):
    """To whole numbers, halves to even, of numbers within +-127: behind the point no bit is left."""
    return (numbers + 12582912.0) - 12582912.0


@triton.jit
def round_to_int8(first: tl.tensor, second: tl.tensor):
    """Both halves of a state as whole numbers within +-127, float32, and its scale."""
    largest = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=0)
    scale = tl.maximum(tl.div_rn(largest, 127.0), 1.1754943508222875e-38)  # the least normal float32
    scale += tl.sum(first * 0.0 + second * 0.0, axis=0)  # int8 has no NaN: the scale keeps it
    return _round(tl.div_rn(first, scale)), _round(tl.div_rn(second, scale)), scale


@triton.jit(do_not_specialize=["capacity"])
def turn_and_store(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    cached_keys: tl.tensor,
    cached_values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    length: tl.tensor,
    turned: tl.tensor,
    capacity: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Program (head): of queries, then of keys, then of values, which are not turned.

    queries, keys, values, cosines, sines: any float; the cache as KVCache.storage gives it; turned: (HEADS,
    HEAD_DIM) float32.
    """
    head = tl.program_id(0)
    pair = tl.arange(0, PAIRS)
    inside = pair < HEAD_DIM // 2
    is_query = head < HEADS
    is_value = head >= HEADS + KV_HEADS
    kv_head = tl.where(is_value, head - HEADS - KV_HEADS, head - HEADS)
    if is_query:
        source = queries + head * HEAD_DIM
    elif is_value:
        source = values + kv_head * HEAD_DIM
    else:
        source = keys + kv_head * HEAD_DIM
    even = tl.load(source + 2 * pair, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(source + 2 * pair + 1, mask=inside, other=0.0).to(tl.float32)
    cosine = tl.load(cosines + pair, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sines + pair, mask=inside, other=0.0).to(tl.float32)
    first = tl.where(is_value, even, even * cosine - odd * sine)
    second = tl.where(is_value, odd, odd * cosine + even * sine)
    if is_query:
        tl.store(turned + head * HEAD_DIM + 2 * pair, first, mask=inside)
        tl.store(turned + head * HEAD_DIM + 2 * pair + 1, second, mask=inside)
        return
    row = kv_head.to(tl.int64) * capacity + tl.load(length)
    if key_scales is not None:
        first, second, scale = round_to_int8(first, second)
        if is_value:
            tl.store(value_scales + row, scale)
        else:
            tl.store(key_scales + row, scale)
    if is_value:
        target = cached_values + row * HEAD_DIM
    else:
        target = cached_keys + row * HEAD_DIM
    kind = cached_keys.dtype.element_ty
    tl.store(target + 2 * pair, first.to(kind), mask=inside)
    tl.store(target + 2 * pair + 1, second.to(kind), mask=inside)
