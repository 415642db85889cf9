"""Attends with many new tokens to their layer's cache, which holds their keys and values already.

A program goes through the cache once, some tokens at a time, and keeps one softmax for each of its rows: no
mask and no score leaves it. What is attended to is what the cache holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ernie_local.kernels.arguments import LayerStorage
from ernie_local.kernels.triton.attention import load_queries
from ernie_local.kernels.triton.device import TritonDevice

_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_LEAST_COLUMNS = 16  # tl.dot takes no fewer


def attend_chunk_by_triton(queries: Tensor, cache: LayerStorage, length: int, device: TritonDevice) -> Tensor:
    """What the tokens behind `length` cached ones see of those and of each other, themselves included.

    queries: (tokens, heads, head_dim) of any float, turned. The cache is float32, bfloat16, float16 or int8,
    and has the new tokens' rows from `length` on. Takes no memory but the result, which is like queries.
    """
    queries = queries.contiguous()
    num_new, heads, head_dim = queries.shape
    kv_heads, capacity, _ = cache.keys.shape
    group = heads // kv_heads
    output = torch.empty_like(queries)
    dtype = device.dtype_of_cache(cache.keys.dtype)
    sizes = device.sizes_for_chunk(dtype)
    attend_many[(triton.cdiv(num_new * group, sizes["ROWS"]), kv_heads)](
        queries,
        *cache,
        output,
        length=length,
        num_new=num_new,
        capacity=capacity,
        HEADS=heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        COLUMNS=max(_LEAST_COLUMNS, triton.next_power_of_2(head_dim)),
        DTYPE=_DTYPES[dtype],
        **sizes,
    )
    return output


@triton.jit(do_not_specialize=["length", "num_new", "capacity"])
def attend_many(  # long: sixteen arguments, one a line
    queries,
    cached_keys,
    cached_values,
    key_scales,
    value_scales,
    output,
    length,
    num_new,
    capacity,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Program (rows, head of keys). Its rows are the heads that share keys, of one new token after the other.

    Scores are of base 2. Rows that see most come first, so that none of them is left for the end.
    """
    kv_head = tl.program_id(1)
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_row = row < num_new * GROUP
    is_column = column < HEAD_DIM
    is_state = is_row[:, None] & is_column[None, :]
    new = row // GROUP
    state = (new * HEADS + kv_head * GROUP + row % GROUP)[:, None] * HEAD_DIM + column[None, :]
    query, factor = load_queries(queries + state, is_state, DTYPE)
    factor *= 1.4426950408889634 * HEAD_DIM**-0.5  # scores are of base 2
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    first_row = kv_head.to(tl.int64) * capacity
    last_new = tl.minimum(first + ROWS - 1, num_new * GROUP - 1) // GROUP
    visible = length + last_new + 1
    for start in range(0, visible, AT_ONCE):
        token = start + tl.arange(0, AT_ONCE)
        is_token = token < visible
        at = (first_row + token)[:, None] * HEAD_DIM + column[None, :]
        inside = is_token[:, None] & is_column[None, :]
        keys = tl.load(cached_keys + at, mask=inside, other=0).to(DTYPE)  # (tokens, columns)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * factor[:, None]  # (rows, tokens)
        if key_scales is not None:
            scores *= tl.load(key_scales + first_row + token, mask=is_token, other=0.0)[None, :]
        scores = tl.where(token[None, :] <= length + new[:, None], scores, float("-inf"))
        highest = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - highest[:, None])
        fading = tl.exp2(largest - highest)
        total = total * fading + tl.sum(weights, axis=1)
        values = tl.load(cached_values + at, mask=inside, other=0).to(DTYPE)
        if value_scales is not None:
            # Weights with scales stay between 0 and 1, whatever the scales are.
            scales = tl.load(value_scales + first_row + token, mask=is_token, other=0.0)
            biggest = tl.max(scales, axis=0)
            weights *= tl.div_rn(scales, biggest)[None, :]
            part = tl.dot(weights.to(DTYPE), values, input_precision="ieee") * biggest
        else:
            part = tl.dot(weights.to(DTYPE), values, input_precision="ieee")
        sums = sums * fading[:, None] + part
        largest = highest
    attended = sums / total[:, None]
    tl.store(output + state, attended.to(output.dtype.element_ty), mask=is_state)
