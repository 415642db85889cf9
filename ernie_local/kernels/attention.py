"""Attends with one new token to all that a layer's cache holds: `decode_attention` and `packed_attention`.

The latter is the attention half of a layer in one call. Between two long reads each small call costs several
times what it costs by itself, as the weights have swept Python out of the processor's caches. On a GPU the
model calls `attend_token`, which takes the cache's length from the GPU, and for many tokens `attend_chunk`.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from ernie_local.errors import UsageError
from ernie_local.kernels import gpu
from ernie_local.kernels.arguments import (
    NOTHING_ADDED,
    LayerStorage,
    LowRankParts,
    NewToken,
    NewTokens,
    PackedAttentionCall,
    PackedMatrix,
    check_float_rows,
    check_tensor,
    describe_tensor,
)
from ernie_local.kernels.linear import packed_linear
from ernie_local.kernels.low_rank import add_low_rank
from ernie_local.kernels.norm_route import rms_norm
from ernie_local.kernels.operators import native_or_reference, needs_no_dispatch, ready_module, register
from ernie_local.kernels.reference import plain_attention
from ernie_local.packing import find_format

_OP = "decode_attention"
CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def decode_attention(new_token: NewToken, cache: LayerStorage, length: int) -> Tensor:
    """Attention of one new token over the `length` cached ones and itself; writes it behind them.

    The cache is float32, bfloat16, float16 or int8. What is attended to is what the cache holds after
    rounding. A NaN makes every head that sees it NaN, as in torch. Returns (heads, head_dim) float32. Raises
    UsageError.
    """
    if needs_no_dispatch(new_token.queries):
        return _attention_cpu(new_token, cache, length)
    output: Tensor = torch.ops.ernie_local.decode_attention(*new_token, *cache, length)
    return output


def packed_attention(
    step: PackedAttentionCall,
    cache: LayerStorage,
    length: int,
    qkv_added: LowRankParts = NOTHING_ADDED,
    o_added: LowRankParts = NOTHING_ADDED,
) -> Tensor:
    """hidden + o(attention(qkv(norm(hidden)))) of one new token, whose key and value go into the cache.

    qkv_added, o_added: what an adapter adds to the two products. Returns (1, hidden_size) float32. Raises
    what the operators that it stands for raise.
    """
    if needs_no_dispatch(step.hidden):
        return _packed_attention_cpu(step, qkv_added, o_added, cache, length)
    output: Tensor = torch.ops.ernie_local.packed_attention(*step, *qkv_added, *o_added, *cache, length)
    return output


def gpu_attends(device: torch.device, cache_dtype: torch.dtype, gpu_kernels: str = "auto") -> bool:
    """Whether `attend_token` serves there: Triton runs, and multiplies what such a cache holds."""
    found = None if device.type == "cpu" else gpu.find_triton(device, gpu_kernels)
    if found is None:
        return False
    return cache_dtype in (torch.int8, torch.float16) or (
        cache_dtype == torch.bfloat16 and found.uses_tensor_cores
    )


def attend_token(new_token: NewToken, cache: LayerStorage, length: Tensor) -> Tensor:
    """As `decode_attention` on a GPU, with the length there: (1,) int64, for which the host does not wait."""
    from ernie_local.kernels.triton.attention import attend_by_triton

    return attend_by_triton(new_token, cache, length, gpu.require_triton(new_token.queries.device))


def attend_chunk(queries: Tensor, cache: LayerStorage, length: int) -> Tensor:
    """What many new tokens see, on a GPU: (tokens, heads, head_dim), turned and stored -> the same shape.

    Their keys and values are in the cache from row `length` on; it is read in place, whatever its dtype.
    """
    from ernie_local.kernels.triton.chunk_attention import attend_chunk_by_triton

    return attend_chunk_by_triton(queries, cache, length, gpu.require_triton(queries.device))


def attention_in_parts(
    step: PackedAttentionCall,
    cache: LayerStorage,
    length: int,
    qkv_added: LowRankParts = NOTHING_ADDED,
    o_added: LowRankParts = NOTHING_ADDED,
) -> Tensor:
    """What `packed_attention` means; where the compiled code refuses, the operator that fails says why."""
    hidden, heads = step.hidden, step.heads
    if hidden.ndim != 2 or hidden.shape[0] != 1 or cache.keys.ndim != 3:
        raise UsageError(
            f"packed_attention: hidden is {tuple(hidden.shape)} and cached_keys {tuple(cache.keys.shape)}, "
            "wanted (1, hidden_size) and (kv_heads, capacity, head_dim)",
            "it serves one new token of one layer",
            "call it for each token",
        )
    kv_heads, _, head_dim = cache.keys.shape
    qkv = PackedMatrix(step.qkv, step.qkv_format, (heads + 2 * kv_heads) * head_dim)
    normed = rms_norm(hidden, step.norm, step.eps)
    states = packed_linear(normed, qkv)
    if qkv_added.inward:
        add_low_rank(states, normed, qkv_added)
    by_head = states.view(heads + 2 * kv_heads, head_dim)
    queries, keys, values = by_head.split((heads, kv_heads, kv_heads))
    new_token = NewToken(queries, keys, values, step.cosines.flatten(), step.sines.flatten())
    attended = decode_attention(new_token, cache, length).view(1, heads * head_dim)
    output = packed_linear(attended, PackedMatrix(step.o, step.o_format, hidden.shape[1]))
    if o_added.inward:
        add_low_rank(output, attended, o_added)
    return hidden + output


def _check_attention(new_token: NewToken, cache: LayerStorage, length: int) -> None:
    check_float_rows(_OP, "queries", new_token.queries, "(heads, head_dim)")
    check_new_tokens(_OP, new_token, cache, length)


def check_new_tokens(op: str, new: NewToken | NewTokens, cache: LayerStorage, length: int) -> None:
    """Raise UsageError unless keys, values, angles and cache fit the queries, (..., heads, head_dim)."""
    queries, device = new.queries, new.queries.device
    *tokens, heads, head_dim = queries.shape
    num_new = tokens[0] if tokens else 1
    if cache.keys.ndim != 3 or not cache.keys.shape[0] or cache.keys.dtype not in CACHE_DTYPES:
        raise UsageError(
            f"{op}: cached_keys is {describe_tensor(cache.keys)}, wanted float32, bfloat16, float16 or int8 "
            "(kv_heads, capacity, head_dim)",
            "a layer's cache holds a row for each token of each head",
            "pass what KVCache.storage gives",
        )
    kv_heads, capacity = cache.keys.shape[:2]
    if not heads or heads % kv_heads or head_dim < 2 or head_dim % 2:
        raise UsageError(
            f"{op}: queries is {describe_tensor(queries)} for {kv_heads} heads of keys",
            "each head of keys serves the same number of query heads, and a head is made of pairs",
            "take the numbers of heads and their size from the model's configuration",
        )
    for name, tensor in (("keys", new.keys), ("values", new.values)):
        check_tensor(op, name, tensor, (*tokens, kv_heads, head_dim), device)
    for name, tensor in (("cosines", new.cosines), ("sines", new.sines)):
        check_tensor(op, name, tensor, (*tokens, head_dim // 2), device)
    for name, tensor in (("cached_keys", cache.keys), ("cached_values", cache.values)):
        check_tensor(op, name, tensor, (kv_heads, capacity, head_dim), device, cache.keys.dtype)
        _check_without_gaps(op, name, tensor)
    for name, scales in (("key_scales", cache.key_scales), ("value_scales", cache.value_scales)):
        if (scales is not None) != (cache.keys.dtype == torch.int8):
            raise UsageError(
                f"{op}: {name} is {'missing' if scales is None else describe_tensor(scales)} for a cache in "
                f"{cache.keys.dtype}",
                "an int8 cache has scales, the others have none",
                "pass what KVCache.storage gives",
            )
        if scales is not None:
            check_tensor(op, name, scales, (kv_heads, capacity, 1), device)
            _check_without_gaps(op, name, scales)
    if not 0 <= length <= capacity - num_new:
        raise UsageError(
            f"{op}: length is {length}, the capacity {capacity}",
            f"{num_new} new tokens need rows behind those that are cached"
            if num_new > 1
            else "the new token needs a row behind those that are cached",
            f"pass a length of 0 to capacity - {num_new}",
        )


def _check_without_gaps(op: str, name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise UsageError(
            f"{op}: {name} {tuple(tensor.shape)} has strides {tensor.stride()}, wanted no gaps",
            "it is written in place, and a copy would be lost",
            "pass what KVCache.storage gives",
        )


def _attention_native(
    module: ModuleType, new_token: NewToken, cache: LayerStorage, length: int
) -> Tensor | None:
    output = torch.empty_like(new_token.queries)
    return output if module.decode_attention(*new_token, *cache, length, output) else None


def _packed_attention_cpu(
    step: PackedAttentionCall,
    qkv_added: LowRankParts,
    o_added: LowRankParts,
    cache: LayerStorage,
    length: int,
) -> Tensor:
    module = ready_module()
    if module is not None:
        output = torch.empty_like(step.hidden)
        # As torch's schema, with numbers for the names of formats.
        qkv_id, o_id = find_format(step.qkv_format).format_id, find_format(step.o_format).format_id
        numbered = (*step[:4], qkv_id, step.o, o_id, *step[7:])
        if module.packed_attention(*numbered, qkv_added, o_added, *cache, length, output):
            return output
    return attention_in_parts(step, cache, length, qkv_added, o_added)


def attention_on_gpu(new_token: NewToken, cache: LayerStorage, length: int) -> Tensor:
    """`decode_attention` on a GPU: by Triton, or by plain torch without it."""
    _check_attention(new_token, cache, length)
    device = new_token.queries.device
    if gpu.find_triton(device) is None:
        return plain_attention(new_token, cache, length)
    # Filled on the GPU: a copy from the host would wait.
    return attend_token(new_token, cache, torch.full((1,), length, dtype=torch.int64, device=device))


_CACHE = (
    "Tensor(a!) cached_keys, Tensor(b!) cached_values, "
    "Tensor(c!)? key_scales, Tensor(d!)? value_scales, int length"
)
_attention_cpu = partial(native_or_reference, _attention_native, _check_attention, plain_attention)
register(
    "decode_attention(Tensor queries, Tensor keys, Tensor values, Tensor cosines, Tensor sines, "
    f"{_CACHE}) -> Tensor",
    (NewToken, LayerStorage, None),
    _attention_cpu,
    attention_on_gpu,
)
register(
    "packed_attention(Tensor hidden, Tensor norm, float eps, Tensor qkv, str qkv_format, "
    "Tensor o, str o_format, int heads, Tensor cosines, Tensor sines, Tensor[] qkv_inward, "
    "Tensor[] qkv_outward, int[] qkv_first_rows, int[] qkv_num_rows, Tensor[] o_inward, Tensor[] o_outward, "
    f"int[] o_first_rows, int[] o_num_rows, {_CACHE}) -> Tensor",
    (PackedAttentionCall, LowRankParts, LowRankParts, LayerStorage, None),
    _packed_attention_cpu,
)
