"""Causal grouped-query self-attention of the decoder over a KV cache.

Knows nothing of images: a token sees itself and every token before it, whatever they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ernie_local.config import TextConfig
from ernie_local.kernels.arguments import AttentionStep, NewToken
from ernie_local.kernels.attention import attend_token, decode_attention, packed_attention
from ernie_local.kernels.operators import suits_decode_ops
from ernie_local.model.kv_cache import KVCache
from ernie_local.model.norms import RMSNorm
from ernie_local.model.packed_linear import PackedLinear
from ernie_local.model.rope import rotate_pairs
from ernie_local.model.unfilled import Linear

# Entries of one mask: 4 Mi are 4 MiB as bool and 16 MiB as the float that SDPA makes of it, at any context
# size.
_MAX_MASK_ENTRIES = 4 << 20


@dataclass(frozen=True, slots=True)
class CausalBlock:
    """New tokens start..stop see `visible` tokens, but for those that `mask`, (rows, visible), hides."""

    start: int
    stop: int
    visible: int
    mask: torch.Tensor


def causal_blocks(
    num_new: int, num_past: int, device: torch.device, max_entries: int = _MAX_MASK_ENTRIES
) -> list[CausalBlock]:
    """Masks for `num_new` tokens behind `num_past`, in blocks of rows so that no mask exceeds `max_entries`.

    Empty where no mask is needed: one new token sees everything, and with nothing cached SDPA's own causal
    mode applies.
    """
    if num_new == 1 or num_past == 0:
        return []
    rows = max(1, max_entries // (num_past + num_new))
    blocks = []
    for start in range(0, num_new, rows):
        stop = min(start + rows, num_new)
        visible = num_past + stop
        everything = torch.ones(stop - start, visible, dtype=torch.bool, device=device)
        blocks.append(CausalBlock(start, stop, visible, everything.tril(num_past + start)))
    return blocks


class SelfAttention(nn.Module):
    """Query, key, value and output projections without biases; rotary positions on the whole head."""

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
        self.qkv_proj: PackedLinear | None = None

    def forward(
        self,
        hidden: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        cache: KVCache,
        blocks: Sequence[CausalBlock],
    ) -> torch.Tensor:
        """hidden: (tokens, hidden_size); angles: (tokens, head_dim / 2) -> (tokens, hidden_size).

        Appends this layer's keys and values to the cache; `blocks` come from `causal_blocks`.
        """
        num_tokens = hidden.shape[0]
        if num_tokens == 1 and suits_decode_ops(hidden):
            return self._decode(hidden, cosines, sines, cache)
        queries, keys, values = self._project(hidden)
        queries = rotate_pairs(queries, cosines, sines)
        keys = rotate_pairs(keys, cosines, sines)
        all_keys, all_values = cache.append(self.layer_id, keys, values)  # (kv_heads, visible, head_dim)
        attended = self._attend(queries, all_keys[None], all_values[None], blocks)
        output: torch.Tensor = self.o_proj(attended.reshape(num_tokens, -1))  # (tokens, heads * head_dim)
        return output

    def can_step(self, hidden: torch.Tensor) -> bool:
        """Whether `step` serves `hidden`, (tokens, hidden_size)."""
        return (
            self.qkv_proj is not None
            and isinstance(self.o_proj, PackedLinear)
            and hidden.shape[0] == 1
            and suits_decode_ops(hidden)
        )

    def step(
        self, hidden: torch.Tensor, norm: RMSNorm, cosines: torch.Tensor, sines: torch.Tensor, cache: KVCache
    ) -> torch.Tensor:
        """hidden + forward(norm(hidden)) of one token over packed weights, in one operator."""
        qkv, o = self.qkv_proj, self.o_proj
        assert qkv is not None
        assert isinstance(o, PackedLinear)
        weights = (norm.weight, norm.eps, qkv.packed, qkv.format_name, o.packed, o.format_name)
        one = AttentionStep(hidden, *weights, self.num_heads, cosines, sines)
        return packed_attention(one, cache.storage(self.layer_id), cache.length)

    def on_gpu(
        self,
        hidden: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        cache: KVCache,
        length: torch.Tensor,
    ) -> torch.Tensor:
        """`forward` of one token by the GPU's kernel, where `gpu_attends`. length: (1,) int64."""
        queries, keys, values = self._project(hidden)
        new_token = NewToken(queries[0], keys[0], values[0], cosines[0], sines[0])
        attended = attend_token(new_token, cache.storage(self.layer_id), length)  # (heads, head_dim)
        output: torch.Tensor = self.o_proj(attended.view(1, -1).to(hidden.dtype))  # (1, heads * head_dim)
        return output

    def _project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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

    def _decode(
        self, hidden: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, cache: KVCache
    ) -> torch.Tensor:
        """`forward` of one token, with all between the projections in one operator."""
        queries, keys, values = self._project(hidden)
        new_token = NewToken(queries[0], keys[0], values[0], cosines[0], sines[0])
        attended = decode_attention(new_token, cache.storage(self.layer_id), cache.length)
        output: torch.Tensor = self.o_proj(attended.view(1, -1))  # (1, heads * head_dim)
        return output

    def _attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, blocks: Sequence[CausalBlock]
    ) -> torch.Tensor:
        """queries: (tokens, heads, head_dim); keys, values: (1, kv_heads, all, head_dim) -> like queries."""
        if queries.shape[0] == 1:
            # The heads of a group share keys: as rows of one matrix they read them once.
            grouped = queries.view(1, self.num_kv_heads, -1, self.head_dim)  # (1, kv_heads, group, head_dim)
            one = functional.scaled_dot_product_attention(grouped, keys, values)
            return one.reshape(1, self.num_heads, self.head_dim)
        by_head = queries.transpose(0, 1)[None]  # (1, heads, tokens, head_dim)
        if blocks:
            parts = [
                functional.scaled_dot_product_attention(
                    by_head[:, :, block.start : block.stop],
                    keys[:, :, : block.visible],
                    values[:, :, : block.visible],
                    attn_mask=block.mask,
                    enable_gqa=True,
                )
                for block in blocks
            ]
            attended = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        else:
            attended = functional.scaled_dot_product_attention(
                by_head, keys, values, is_causal=True, enable_gqa=True
            )
        return attended[0].transpose(0, 1)  # (tokens, heads, head_dim)
