"""Attention of one token over the cache, stretch by stretch, and one result out of those of all stretches."""

from __future__ import annotations

import triton
import triton.language as tl

from ernie_local.kernels.triton.halvings import halvings_below_32768


@triton.jit
def load_queries(pointers: tl.tensor, inside: tl.tensor, DTYPE: tl.constexpr):
    """(rows, columns) in DTYPE, and (rows,) float32, what products with them have to be multiplied with."""
    queries = tl.load(pointers, mask=inside, other=0.0)
    before, after = halvings_below_32768(tl.max(tl.abs(queries), axis=1))
    return (queries * before[:, None]).to(DTYPE), after


@triton.jit(do_not_specialize=["capacity", "num_stretches"])
def attend_stretch(  # long: seventeen arguments, one a line
    turned: tl.tensor,
    cached_keys: tl.tensor,
    cached_values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    length: tl.tensor,
    parts: tl.tensor,
    summaries: tl.tensor,
    capacity: tl.tensor,
    num_stretches: tl.tensor,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    STRETCH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Program (stretch, head of keys): softmax-weighted values of its tokens for the heads that share keys.

    parts: (heads, stretches, HEAD_DIM) float32, not yet divided; summaries: (heads, stretches, 2), the
    largest score and the sum of weights. Scores are of base 2. Stretches behind the new token write nothing.
    """
    stretch = tl.program_id(0)
    kv_head = tl.program_id(1)
    visible = tl.load(length) + 1
    if stretch * STRETCH >= visible:
        return
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_head = row < GROUP
    is_column = column < HEAD_DIM
    heads = kv_head * GROUP + row
    is_state = is_head[:, None] & is_column[None, :]
    query, factor = load_queries(turned + heads[:, None] * HEAD_DIM + column[None, :], is_state, DTYPE)
    factor *= 1.4426950408889634 * HEAD_DIM**-0.5  # scores are of base 2
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    first_row = kv_head.to(tl.int64) * capacity
    for start in range(stretch * STRETCH, tl.minimum((stretch + 1) * STRETCH, visible), AT_ONCE):
        token = start + tl.arange(0, AT_ONCE)
        is_token = token < visible
        at = (first_row + token)[:, None] * HEAD_DIM + column[None, :]
        inside = is_token[:, None] & is_column[None, :]
        keys = tl.load(cached_keys + at, mask=inside, other=0).to(DTYPE)  # (tokens, columns)
        values = tl.load(cached_values + at, mask=inside, other=0).to(DTYPE)
        scores = tl.dot(query, tl.trans(keys)) * factor[:, None]  # (rows, tokens)
        if key_scales is not None:
            scores *= tl.load(key_scales + first_row + token, mask=is_token, other=0.0)[None, :]
        scores = tl.where(is_token[None, :], scores, float("-inf"))
        highest = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - highest[:, None])
        fading = tl.exp2(largest - highest)
        total = total * fading + tl.sum(weights, axis=1)
        if value_scales is not None:
            # Weights with scales stay between 0 and 1, whatever the scales are.
            scales = tl.load(value_scales + first_row + token, mask=is_token, other=0.0)
            biggest = tl.max(scales, axis=0)
            weights *= tl.div_rn(scales, biggest)[None, :]
            part = tl.dot(weights.to(DTYPE), values) * biggest
        else:
            part = tl.dot(weights.to(DTYPE), values)
        sums = sums * fading[:, None] + part
        largest = highest
    result = heads * num_stretches + stretch
    tl.store(parts + result[:, None] * HEAD_DIM + column[None, :], sums, mask=is_state)
    tl.store(summaries + result * 2, largest, mask=is_head)
    tl.store(summaries + result * 2 + 1, total, mask=is_head)


@triton.jit(do_not_specialize=["num_stretches"])
def join_stretches(
    parts: tl.tensor,
    summaries: tl.tensor,
    length: tl.tensor,
    output: tl.tensor,
    num_stretches: tl.tensor,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    STRETCH: tl.constexpr,
):
    """Program (head): one softmax out of those of all stretches up to the new token, first to last."""
    head = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    inside = column < HEAD_DIM
    largest = float("-inf")
    total = 0.0
    sums = tl.zeros([COLUMNS], tl.float32)
    for stretch in range(tl.load(length) // STRETCH + 1):
        part = head * num_stretches + stretch
        own_largest = tl.load(summaries + part * 2)
        own_total = tl.load(summaries + part * 2 + 1)
        own = tl.load(parts + part * HEAD_DIM + column, mask=inside, other=0.0)
        highest = tl.maximum(largest, own_largest)
        before = tl.exp2(largest - highest)
        now = tl.exp2(own_largest - highest)
        total = total * before + own_total * now
        sums = sums * before + own * now
        largest = highest
    tl.store(output + head * HEAD_DIM + column, sums / total, mask=inside)
