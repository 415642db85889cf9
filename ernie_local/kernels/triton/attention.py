"""Attends with one new token to its layer's cache.

First the new token is turned and stored in the cache's format; then programs each look at a stretch of the
cache; then their results become one. What is attended to is what the cache holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ernie_local.errors import UsageError
from ernie_local.kernels.arguments import LayerStorage, NewToken
from ernie_local.kernels.triton.activations import halvings_below_32768
from ernie_local.kernels.triton.device import TritonDevice

STRETCH = 256  # tokens a program looks at
# tl.dot takes no fewer rows: of the heads that share keys, the others are empty.
_LEAST_ROWS = 16


def attend_by_triton(
    new_token: NewToken, cache: LayerStorage, length: Tensor, device: TritonDevice
) -> Tensor:
    """As the operator decode_attention, on one GPU, for a cache in float16, bfloat16 or int8.

    length: (1,) int64 on the GPU, so that one recorded graph serves every token. Multiplied in the dtype of
    a 16-bit cache, in the GPU's for int8. -> (heads, head_dim) float32.
    """
    heads, head_dim = new_token.queries.shape
    kv_heads, capacity, _ = cache.keys.shape
    columns = max(_LEAST_ROWS, triton.next_power_of_2(head_dim))
    shape = {"HEAD_DIM": head_dim, "COLUMNS": columns, "STRETCH": STRETCH}
    turned = new_token.queries.new_empty(heads, head_dim, dtype=torch.float32)
    turn_and_store[(heads + 2 * kv_heads,)](
        *(part.contiguous() for part in new_token),
        *cache,
        length,
        turned,
        capacity=capacity,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        PAIRS=triton.next_power_of_2(head_dim // 2),
    )
    group = heads // kv_heads
    stretches = triton.cdiv(capacity, STRETCH)
    parts = turned.new_empty(heads, stretches, head_dim)
    summaries = turned.new_empty(heads, stretches, 2)
    attend_stretch[(stretches, kv_heads)](
        turned,
        *cache,
        length,
        parts,
        summaries,
        capacity=capacity,
        num_stretches=stretches,
        GROUP=group,
        ROWS=max(_LEAST_ROWS, triton.next_power_of_2(group)),
        DTYPE=_multiplied_in(cache.keys.dtype, device),
        **shape,
        **device.sizes_for_attention(),
    )
    output = torch.empty_like(turned)
    join_stretches[(heads,)](parts, summaries, length, output, num_stretches=stretches, **shape)
    return output


def _multiplied_in(cache_dtype: torch.dtype, device: TritonDevice) -> tl.dtype:
    dtype = device.dtype if cache_dtype == torch.int8 else cache_dtype
    if dtype != torch.float16 and not (dtype == torch.bfloat16 and device.uses_tensor_cores):
        raise UsageError(
            f"decode_attention: a cache in {cache_dtype}, this GPU multiplies float16"
            + (" and bfloat16" if device.uses_tensor_cores else ""),
            "kernels multiply what a 16-bit cache holds as it lies there",
            "keep the cache in float16 or int8",
        )
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16


@triton.jit
def _round(numbers):
    """To whole numbers, halves to even, of numbers within +-127: behind the point no bit is left."""
    return (numbers + 12582912.0) - 12582912.0


@triton.jit
def round_to_int8(first, second):
    """Both halves of a state as whole numbers within +-127, float32, and its scale."""
    largest = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=0)
    scale = tl.maximum(tl.div_rn(largest, 127.0), 1.1754943508222875e-38)  # the least normal float32
    scale += tl.sum(first * 0.0 + second * 0.0, axis=0)  # int8 has no NaN: the scale keeps it
    return _round(tl.div_rn(first, scale)), _round(tl.div_rn(second, scale)), scale


@triton.jit(do_not_specialize=["capacity"])
def turn_and_store(
    queries,
    keys,
    values,
    cosines,
    sines,
    cached_keys,
    cached_values,
    key_scales,
    value_scales,
    length,
    turned,
    capacity,
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


@triton.jit
def load_queries(pointers, inside, DTYPE: tl.constexpr):
    """(rows, columns) in DTYPE, and (rows,) float32, what products with them have to be multiplied with."""
    queries = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    before, after = halvings_below_32768(tl.max(tl.abs(queries), axis=1))
    return (queries * before[:, None]).to(DTYPE), after


@triton.jit(do_not_specialize=["capacity", "num_stretches"])
def attend_stretch(  # long: seventeen arguments, one a line
    turned,
    cached_keys,
    cached_values,
    key_scales,
    value_scales,
    length,
    parts,
    summaries,
    capacity,
    num_stretches,
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
    parts,
    summaries,
    length,
    output,
    num_stretches,
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
