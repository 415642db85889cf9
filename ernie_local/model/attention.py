"""Computes causal grouped-query self-attention of the decoder over a KV cache, in one of several ways.

A token sees itself and every token before it, whatever they are. `choose_attention` picks the way once for
all layers of a forward: a chunk by torch, in blocks or by a GPU's kernel, one token by an operator or by a
GPU's kernel for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ernie_local.config import TextConfig
from ernie_local.kernels.arguments import LayerStorage, LowRankParts, NewToken, NewTokens, PackedAttentionCall
from ernie_local.kernels.attention import (
    attend_chunk,
    attend_token,
    decode_attention,
    gpu_attends,
    packed_attention,
)
from ernie_local.kernels.block_attention import chunk_attention
from ernie_local.kernels.bounded_attention import attend_in_pieces
from ernie_local.kernels.operators import suits_decode_ops, suits_native
from ernie_local.model.kv_cache import KVCache
from ernie_local.model.layers import AdaptedLinear, Linear, PackedLinear, RMSNorm, parts_of_linear
from ernie_local.model.memory_use import AttentionWay
from ernie_local.model.rope import rotate_pairs

# Entries of one mask: 4 Mi are 4 MiB as bool and 16 MiB as the float that SDPA makes of it, at any context
# size.
_MAX_MASK_ENTRIES = 4 << 20


def causal_masks(
    num_new: int, num_past: int, device: torch.device, max_entries: int = _MAX_MASK_ENTRIES
) -> list[Tensor]:
    """What `num_new` tokens behind `num_past` see: (rows, visible) bool for some rows after the other.

    As many rows in one as do not exceed `max_entries`. Empty where no mask is needed: one new token sees
    everything, and with nothing cached SDPA's own causal mode applies.
    """
    if num_new == 1 or num_past == 0:
        return []
    rows = max(1, max_entries // (num_past + num_new))
    masks = []
    for start in range(0, num_new, rows):
        stop = min(start + rows, num_new)
        everything = torch.ones(stop - start, num_past + stop, dtype=torch.bool, device=device)
        masks.append(everything.tril(num_past + start))
    return masks


class SelfAttention(nn.Module):
    """Projections of queries, keys, values and output, without biases. An AttentionStep applies them."""

    def __init__(self, config: TextConfig, layer_id: int) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        query_size = self.num_heads * self.head_dim
        kv_size = self.num_kv_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj: nn.Module = Linear(query_size, config.hidden_size, bias=False)
        # In a packed checkpoint one matrix in place of the three.
        self.qkv_proj: PackedLinear | AdaptedLinear | None = None

    @property
    def packed_projections(self) -> tuple[PackedLinear, PackedLinear, LowRankParts, LowRankParts] | None:
        """The packed matrices of queries, keys and values, and of the output; what is added to each.

        None unless both are packed.
        """
        qkv, qkv_added = parts_of_linear(self.qkv_proj)
        o, o_added = parts_of_linear(self.o_proj)
        if not (isinstance(qkv, PackedLinear) and isinstance(o, PackedLinear)):
            return None
        return qkv, o, qkv_added, o_added

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden: (tokens, hidden_size) -> queries, keys and values, (tokens, their heads, head_dim) each."""
        if self.qkv_proj is not None:
            heads = self.qkv_proj(hidden).unflatten(-1, (-1, self.head_dim))
            queries, keys, values = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
            return queries, keys, values
        queries, keys, values = (
            project(hidden).unflatten(-1, (-1, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return queries, keys, values

    def pack_qkv(self, qkv_proj: PackedLinear) -> None:
        """Let one packed matrix, rows of queries before keys before values, stand for the three."""
        self.qkv_proj = qkv_proj
        del self.q_proj, self.k_proj, self.v_proj


# A GPU's kernel: one token, the layer's rows of the cache, and its length as (1,) int64 -> (heads, head_dim).
TokenKernel = Callable[[NewToken, LayerStorage, Tensor], Tensor]
# On a GPU: turned queries of stored tokens, (tokens, heads, head_dim), the layer's rows, and the number of
# tokens before them -> like queries.
StoredTokens = Callable[[Tensor, LayerStorage, int], Tensor]


def choose_attention(
    hidden: Tensor,
    cosines: Tensor,
    sines: Tensor,
    cache: KVCache,
    way: AttentionWay = "masks",
    gpu_kernels: str = "auto",
) -> AttentionStep:
    """How these tokens attend. hidden: (tokens, hidden_size); angles: (tokens, head_dim / 2).

    way: how many tokens do, unless it is wanted that they have gradients; a GPU's is "kernel" or "pieces".
    """
    num_tokens, device = hidden.shape[0], hidden.device
    if num_tokens == 1:
        kernel = token_kernel(device, cache.dtype, gpu_kernels)
        if kernel is not None:
            length = torch.full((1,), cache.length, device=device)  # a copy from the host would wait
            return KernelAttention(cosines, sines, cache, length, kernel)
        if suits_decode_ops(hidden):
            return FusedAttention(cosines, sines, cache)
    elif way == "blocks" and suits_native(hidden):
        return BlockAttention(cosines, sines, cache)
    if way in ("kernel", "pieces") and not torch.is_grad_enabled():
        # One token has too few rows for a chunk's kernel: few of its programs would read all of the cache.
        attend = attend_chunk if way == "kernel" and num_tokens > 1 else attend_in_pieces
        return StoredAttention(cosines, sines, cache, attend)
    return ChunkAttention(cosines, sines, cache, causal_masks(num_tokens, cache.length, device))


def token_kernel(device: torch.device, kv_dtype: torch.dtype, gpu_kernels: str) -> TokenKernel | None:
    """The GPU's kernel for one token over a cache of this dtype; None where there is none."""
    return attend_token if gpu_attends(device, kv_dtype, gpu_kernels) else None


class AttentionStep:
    """How the tokens of one forward attend, in every layer."""

    __slots__ = ()

    def add_to(self, hidden: Tensor, norm: RMSNorm, attention: SelfAttention) -> Tensor:
        """hidden + attention(norm(hidden)), whose keys and values go into the cache.

        hidden: (tokens, hidden_size) -> the same shape.
        """
        attended = self.attend(attention.layer_id, *attention.project(norm(hidden)))
        output: Tensor = attention.o_proj(attended.flatten(1).to(hidden.dtype))
        return hidden + output

    def attend(self, layer_id: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Not yet turned, (tokens, their heads, head_dim) each -> (tokens, heads, head_dim)."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class JoinedAttention(AttentionStep):
    """Tokens of several sequences, projected together. parts: the tokens of each, and how they attend."""

    parts: Sequence[tuple[int, AttentionStep]]

    def attend(self, layer_id: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See AttentionStep."""
        counts = [count for count, _ in self.parts]
        states = zip(*(one.split(counts) for one in (queries, keys, values)), strict=True)
        parts = zip(self.parts, states, strict=True)
        return torch.cat([step.attend(layer_id, *own) for (_, step), own in parts])


@dataclass(frozen=True, slots=True)
class ChunkAttention(AttentionStep):
    """Any number of tokens by torch on the CPU, or with gradients. masks: from `causal_masks`."""

    cosines: Tensor
    sines: Tensor
    cache: KVCache
    masks: Sequence[Tensor] = ()

    def attend(self, layer_id: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See AttentionStep."""
        queries = rotate_pairs(queries, self.cosines, self.sines)
        keys = rotate_pairs(keys, self.cosines, self.sines)
        # (kv_heads, visible, head_dim) each
        all_keys, all_values = self.cache.append(layer_id, keys, values)
        return self._attend(queries, all_keys[None], all_values[None])

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries: (tokens, heads, head_dim); keys, values: (1, kv_heads, all, head_dim) -> like queries."""
        if queries.shape[0] == 1:
            # The heads of a group share keys: as rows of one matrix they read them once.
            grouped = queries.view(1, keys.shape[1], -1, keys.shape[-1])  # (1, kv_heads, group, head_dim)
            one = functional.scaled_dot_product_attention(grouped, keys, values)
            return one.reshape(queries.shape)
        by_head = queries.transpose(0, 1)[None]  # (1, heads, tokens, head_dim)
        if self.masks:
            by_rows = by_head.split([len(mask) for mask in self.masks], dim=2)
            parts = [
                functional.scaled_dot_product_attention(
                    some,
                    keys[:, :, : mask.shape[1]],
                    values[:, :, : mask.shape[1]],
                    attn_mask=mask,
                    enable_gqa=True,
                )
                for some, mask in zip(by_rows, self.masks, strict=True)
            ]
            attended = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        else:
            attended = functional.scaled_dot_product_attention(
                by_head, keys, values, is_causal=True, enable_gqa=True
            )
        return attended[0].transpose(0, 1)  # (tokens, heads, head_dim)


@dataclass(frozen=True, slots=True)
class BlockAttention(AttentionStep):
    """Any number of tokens on the CPU, by an operator that holds no masks and reads the cache in place."""

    cosines: Tensor
    sines: Tensor
    cache: KVCache

    def attend(self, layer_id: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See AttentionStep."""
        chunk = NewTokens(queries, keys, values, self.cosines, self.sines)
        return chunk_attention(chunk, self.cache.storage(layer_id), self.cache.length)


@dataclass(frozen=True, slots=True)
class StoredAttention(AttentionStep):
    """Any number of tokens on a GPU, without masks: they are stored first, and the cache is read in place."""

    cosines: Tensor
    sines: Tensor
    cache: KVCache
    kernel: StoredTokens

    def attend(self, layer_id: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See AttentionStep."""
        queries = rotate_pairs(queries, self.cosines, self.sines)
        self.cache.store(layer_id, rotate_pairs(keys, self.cosines, self.sines), values)
        return self.kernel(queries, self.cache.storage(layer_id), self.cache.length)


@dataclass(frozen=True, slots=True)
class FusedAttention(AttentionStep):
    """One token on the CPU: all in one operator with packed projections, else all between the projections."""

    cosines: Tensor
    sines: Tensor
    cache: KVCache

    def add_to(self, hidden: Tensor, norm: RMSNorm, attention: SelfAttention) -> Tensor:
        """See AttentionStep."""
        packed = attention.packed_projections
        if packed is None:
            return AttentionStep.add_to(self, hidden, norm, attention)
        qkv, o, qkv_added, o_added = packed
        weights = (norm.weight, norm.eps, qkv.packed, qkv.format_name, o.packed, o.format_name)
        call = PackedAttentionCall(hidden, *weights, attention.num_heads, self.cosines, self.sines)
        storage = self.cache.storage(attention.layer_id)
        return packed_attention(call, storage, self.cache.length, qkv_added, o_added)

    def attend(self, layer_id: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See AttentionStep."""
        new_token = NewToken(queries[0], keys[0], values[0], self.cosines[0], self.sines[0])
        return decode_attention(new_token, self.cache.storage(layer_id), self.cache.length)[None]


@dataclass(frozen=True, slots=True)
class KernelAttention(AttentionStep):
    """One token on a GPU, by its kernel. length: (1,) int64, of the cache, on the GPU as all else."""

    cosines: Tensor
    sines: Tensor
    cache: KVCache
    length: Tensor
    kernel: TokenKernel

    def attend(self, layer_id: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See AttentionStep."""
        new_token = NewToken(queries[0], keys[0], values[0], self.cosines[0], self.sines[0])
        return self.kernel(new_token, self.cache.storage(layer_id), self.length)[None]
