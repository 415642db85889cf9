"""Attention of one new token over its layer's cache: starts the kernels.

First the new token is turned and stored; then programs each look at a stretch of the cache; then their
results become one. What is attended to is what the cache holds. Knows the cache's layout, not who owns it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ernie_local.errors import UsageError
from ernie_local.kernels.triton.attend import attend_stretch, join_stretches
from ernie_local.kernels.triton.gpu import Gpu
from ernie_local.kernels.triton.store_token import turn_and_store

STRETCH = 256  # tokens a program looks at
# tl.dot takes no fewer rows: of the heads that share keys, the others are empty.
_LEAST_ROWS = 16


def decode_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    cached_keys: torch.Tensor,
    cached_values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    length: torch.Tensor,
    gpu: Gpu,
) -> torch.Tensor:
    """As the operator of this name, on one GPU, for a cache in float16, bfloat16 or int8.

    length: (1,) int64 on the GPU, so that one recorded graph serves every token. Multiplied in the dtype of
    a 16-bit cache, in the GPU's for int8. -> (heads, head_dim) float32.
    """
    heads, head_dim = queries.shape
    kv_heads, capacity, _ = cached_keys.shape
    cache = (cached_keys, cached_values, key_scales, value_scales)
    turned = queries.new_empty(heads, head_dim, dtype=torch.float32)
    turn_and_store[(heads + 2 * kv_heads,)](
        queries.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        cosines,
        sines,
        *cache,
        length,
        turned,
        capacity=capacity,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        PAIRS=triton.next_power_of_2(head_dim // 2),
    )
    return _attend(turned, cache, length, gpu)


def _attend(
    turned: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    length: torch.Tensor,
    gpu: Gpu,
) -> torch.Tensor:
    """turned: (heads, head_dim) float32, queries -> the same shape."""
    heads, head_dim = turned.shape
    kv_heads, capacity, _ = cache[0].shape
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
        HEAD_DIM=head_dim,
        COLUMNS=max(_LEAST_ROWS, triton.next_power_of_2(head_dim)),
        STRETCH=STRETCH,
        DTYPE=_multiplied_in(cache[0].dtype, gpu),
        **gpu.sizes_for_attention(),
    )
    output = torch.empty_like(turned)
    join_stretches[(heads,)](
        parts,
        summaries,
        length,
        output,
        num_stretches=stretches,
        HEAD_DIM=head_dim,
        COLUMNS=triton.next_power_of_2(head_dim),
        STRETCH=STRETCH,
    )
    return output


def _multiplied_in(cache_dtype: torch.dtype, gpu: Gpu) -> tl.dtype:
    dtype = gpu.dtype if cache_dtype == torch.int8 else cache_dtype
    if dtype != torch.float16 and not (dtype == torch.bfloat16 and gpu.uses_tensor_cores):
        raise UsageError(
            f"decode_attention: a cache in {cache_dtype}, this GPU multiplies float16"
            + (" and bfloat16" if gpu.uses_tensor_cores else ""),
            "kernels multiply what a 16-bit cache holds as it lies there",
            "keep the cache in float16 or int8",
        )
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16
