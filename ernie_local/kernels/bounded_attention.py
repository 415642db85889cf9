"""Attends in plain torch on a GPU, piece by piece, so that no matrix of all scores is ever in memory.

What torch itself does depends on the GPU and the dtype: where it has no fused kernel it writes all scores
down, which for one page of a document are gigabytes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn import functional

from ernie_local.kernels.arguments import LayerStorage
from ernie_local.kernels.attention_pieces import AttentionPiece

_FRAME_SCORES = 1 << 19


def attend_in_pieces(queries: Tensor, cache: LayerStorage, length: int) -> Tensor:
    """What the tokens behind `length` cached ones see of those and of each other, themselves included.

    queries: (tokens, heads, head_dim) of any float, turned. The cache, of any dtype, has the new tokens' rows
    from `length` on. Computed in float32; the result is like queries. Takes AttentionPiece.num_bytes besides.
    """
    num_new, heads, head_dim = queries.shape
    piece = AttentionPiece.of(heads, cache.keys.shape[0], head_dim, num_new, length + num_new)
    output = torch.empty_like(queries)
    for first in range(0, num_new, piece.num_new):
        some = slice(first, first + piece.num_new)
        output[some] = _attend_rows(queries[some], cache, length + first, piece.num_cached)
    return output


def _attend_rows(queries: Tensor, cache: LayerStorage, length: int, at_once: int) -> Tensor:
    """As `attend_in_pieces`, for as many new tokens as a piece has. -> (tokens, heads, head_dim) float32."""
    num_new, _, head_dim = queries.shape
    kv_heads = cache.keys.shape[0]
    by_group = queries.unflatten(1, (kv_heads, -1)).transpose(0, 1)  # (kv_heads, new, group, head_dim)
    rows = (by_group.float() * head_dim**-0.5).flatten(1, 2)  # (kv_heads, new * group, head_dim)
    largest = rows.new_full((*rows.shape[:2], 1), -torch.inf)
    total, sums = torch.zeros_like(largest), torch.zeros_like(rows)
    new = torch.arange(length, length + num_new, device=rows.device)
    for start in range(0, length + num_new, at_once):
        stop = min(start + at_once, length + num_new)
        # Nothing holds the keys any longer once there are values.
        scores = rows @ _converted(cache.keys, cache.key_scales, start, stop).mT  # (kv_heads, rows, cached)
        if stop > length + 1:
            is_later = torch.arange(start, stop, device=rows.device) > new[:, None]  # (new, cached)
            scores.unflatten(1, (num_new, -1)).masked_fill_(is_later[:, None], -torch.inf)
        highest = torch.maximum(largest, scores.amax(-1, keepdim=True))
        weights = scores.sub_(highest).exp_()
        fading = largest.sub_(highest).exp_()
        total.mul_(fading).add_(weights.sum(-1, keepdim=True))
        sums.mul_(fading).baddbmm_(weights, _converted(cache.values, cache.value_scales, start, stop))
        largest = highest
        del scores, weights  # before the next ones are made
    attended: Tensor = sums.div_(total).unflatten(1, (num_new, -1))  # (kv_heads, new, group, head_dim)
    return attended.transpose(0, 1).flatten(1, 2)


def _converted(cached: Tensor, scales: Tensor | None, start: int, stop: int) -> Tensor:
    """(kv_heads, stop - start, head_dim) float32."""
    states = cached[:, start:stop].float()
    return states if scales is None else states.mul_(scales[:, start:stop])


def attend_frame(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Full attention of one frame, (1, heads, patches, head_dim) each -> the same shape and dtype.

    By torch's fused kernels where they serve, in float32 if not in the dtype: before compute capability 8.0
    they take no bfloat16. Else in slices of queries, with 2 MiB of scores at a time, and of their softmax.
    """
    given = (queries, keys, values)
    if _is_fused(*given):
        return functional.scaled_dot_product_attention(*given)
    queries, keys, values = (part.float() for part in given)
    if _is_fused(queries, keys, values):
        attended = functional.scaled_dot_product_attention(queries, keys, values)
    else:
        _, heads, patches, head_dim = queries.shape
        at_once = max(1, _FRAME_SCORES // (heads * patches))
        attended = torch.empty_like(queries)
        for rows, results in zip(queries.split(at_once, dim=2), attended.split(at_once, dim=2), strict=True):
            scores = rows @ keys.mT  # (1, heads, rows, patches)
            torch.matmul(scores.mul_(head_dim**-0.5).softmax(-1), values, out=results)
    return attended.to(given[0].dtype)


def _is_fused(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether torch computes this attention without writing its scores down. On the CPU it always does."""
    if queries.device.type == "cpu":
        return True
    given = SDPAParams(queries, keys, values, None, 0.0, False, False)
    return bool(can_use_flash_attention(given) or can_use_efficient_attention(given))
