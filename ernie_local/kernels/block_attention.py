"""Attends with many tokens at once on the CPU: `chunk_attention` for text, `frame_attention` for the tower.

Both go over the keys block by block and hold nothing of the size queries times keys. Queries, keys and values
are rounded to 11 to 14 bits, the weights to 13: about 5e-4 of an average over many keys is lost, which is
little next to int8 activations of packed products. For models that are not packed, torch attends.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from ernie_local.errors import UsageError
from ernie_local.kernels.arguments import (
    LayerStorage,
    NewTokens,
    check_float_rows,
    check_tensor,
    describe_tensor,
)
from ernie_local.kernels.attention import check_new_tokens
from ernie_local.kernels.native import MOST_HEAD_DIM
from ernie_local.kernels.operators import native_or_reference, needs_no_dispatch, register
from ernie_local.kernels.reference import plain_chunk_attention, plain_frame_attention


def chunk_attention(chunk: NewTokens, cache: LayerStorage, length: int) -> Tensor:
    """Attention of each new token to the `length` cached ones, those before it, and itself; writes them.

    The cache is as for `decode_attention`, and afterwards holds the same bytes as if the tokens had come one
    by one. A token that is NaN or infinite anywhere makes every head NaN that sees it. Rows of queries, keys
    and values may have gaps between them. Returns (tokens, heads, head_dim) float32. Raises UsageError.
    """
    if needs_no_dispatch(chunk.queries):
        return _chunk_cpu(chunk, cache, length)
    output: Tensor = torch.ops.ernie_local.chunk_attention(*chunk, *cache, length)
    return output


def frame_attention(
    states: Tensor, cosines: Tensor, sines: Tensor, heads: int, frame_sizes: Sequence[int]
) -> Tensor:
    """Attention of each patch to all of its frame, turned by halves; frames lie one after another.

    states: (patches, 3 * heads * head_dim) float32, queries before keys before values; angles: (patches,
    head_dim / 2) float32 -> (patches, heads * head_dim). A patch that is NaN or infinite makes that head of
    its frame NaN. Raises UsageError.
    """
    if needs_no_dispatch(states):
        return _frames_cpu(states, cosines, sines, heads, list(frame_sizes))
    output: Tensor = torch.ops.ernie_local.frame_attention(states, cosines, sines, heads, list(frame_sizes))
    return output


def _check_chunk(chunk: NewTokens, cache: LayerStorage, length: int) -> None:
    op, queries = "chunk_attention", chunk.queries
    if queries.ndim != 3 or queries.dtype != torch.float32 or not queries.shape[0]:
        raise UsageError(
            f"{op}: queries is {describe_tensor(queries)}, wanted torch.float32 (tokens, heads, head_dim)",
            "it serves at least one token of one layer",
            "let torch compute other dtypes",
        )
    check_new_tokens(op, chunk, cache, length)
    _check_head_dim(op, queries.shape[2])


def _check_frames(
    states: Tensor, cosines: Tensor, sines: Tensor, heads: int, frame_sizes: Sequence[int]
) -> None:
    op = "frame_attention"
    check_float_rows(op, "states", states, "(patches, 3 * heads * head_dim)")
    num_patches, width = states.shape
    if heads < 1 or width % (6 * heads) or not width:
        raise UsageError(
            f"{op}: states has {width} columns for {heads} heads",
            "each head has queries, keys and values, made of pairs",
            "take the number of heads from the model's configuration",
        )
    head_dim = width // (3 * heads)
    _check_head_dim(op, head_dim)
    for name, tensor in (("cosines", cosines), ("sines", sines)):
        check_tensor(op, name, tensor, (num_patches, head_dim // 2), states.device)
    if not frame_sizes or min(frame_sizes) < 1 or sum(frame_sizes) != num_patches:
        raise UsageError(
            f"{op}: frames of {list(frame_sizes)} patches, states has {num_patches}",
            "each patch belongs to one frame",
            "pass the frames' sizes in their order",
        )


def _check_head_dim(op: str, head_dim: int) -> None:
    if head_dim > MOST_HEAD_DIM:
        raise UsageError(
            f"{op}: a head of {head_dim} columns, {MOST_HEAD_DIM} are the most",
            "sums of more products of 12 bits would leave 32 bits",
            "let torch attend",
        )


def _chunk_native(module: ModuleType, chunk: NewTokens, cache: LayerStorage, length: int) -> Tensor | None:
    output = torch.empty(chunk.queries.shape, dtype=torch.float32, device="cpu")
    return output if module.chunk_attention(*chunk, *cache, length, output) else None


def _frames_native(
    module: ModuleType, states: Tensor, cosines: Tensor, sines: Tensor, heads: int, frame_sizes: list[int]
) -> Tensor | None:
    if states.ndim != 2:
        return None
    output = torch.empty(states.shape[0], states.shape[1] // 3, dtype=torch.float32, device="cpu")
    return output if module.frame_attention(states, cosines, sines, heads, frame_sizes, output) else None


def _frames_fake(states: Tensor, *_: object) -> Tensor:
    return states.new_empty(states.shape[0], states.shape[1] // 3)


_chunk_cpu = partial(native_or_reference, _chunk_native, _check_chunk, plain_chunk_attention)
_frames_cpu = partial(native_or_reference, _frames_native, _check_frames, plain_frame_attention)
register(
    "chunk_attention(Tensor queries, Tensor keys, Tensor values, Tensor cosines, Tensor sines, "
    "Tensor(a!) cached_keys, Tensor(b!) cached_values, Tensor(c!)? key_scales, Tensor(d!)? value_scales, "
    "int length) -> Tensor",
    (NewTokens, LayerStorage, None),
    _chunk_cpu,
)
register(
    "frame_attention(Tensor states, Tensor cosines, Tensor sines, int heads, int[] frame_sizes) -> Tensor",
    (None,) * 5,
    _frames_cpu,
    fake=_frames_fake,
)
