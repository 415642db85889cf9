"""One decoder layer, and what all layers of one forward share.

Knows nothing of embeddings, images or logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ernie_local.config import TextConfig
from ernie_local.model.attention import CausalBlock, SelfAttention
from ernie_local.model.kv_cache import KVCache
from ernie_local.model.mlp import GatedMLP
from ernie_local.model.moe import ExpertProvider, MoEBlock, RouteHook, TokenRows
from ernie_local.model.norms import RMSNorm
from ernie_local.model.packed_linear import PackedGatedMLP


@dataclass(frozen=True, slots=True)
class Step:
    """Worked out once per forward: angles (tokens, head_dim / 2), masks, banks, and where states are kept.

    length: (1,) int64 on a GPU, of the cache, where one token attends by its kernel; None elsewhere.
    """

    cosines: torch.Tensor
    sines: torch.Tensor
    blocks: Sequence[CausalBlock]
    rows: TokenRows
    cache: KVCache
    experts: ExpertProvider
    on_route: RouteHook | None
    length: torch.Tensor | None = None


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), where the MLP is dense or a mixture of experts."""

    def __init__(self, config: TextConfig, layer_id: int, is_packed: bool = False) -> None:
        """is_packed: as for RMSNorm."""
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, is_packed)
        self.self_attn = SelfAttention(config, layer_id)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, is_packed)
        self.moe: MoEBlock | None = None
        self.mlp: GatedMLP | PackedGatedMLP | None = None
        if config.moe_layers[layer_id]:
            self.moe = MoEBlock(config, layer_id)
        else:
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        """hidden: (tokens, hidden_size) -> (tokens, hidden_size)."""
        hidden, normed = self.attend(hidden, step)
        if self.moe is not None:
            output: torch.Tensor = hidden + self.moe(normed, step.rows, step.experts, step.on_route)
        else:
            assert self.mlp is not None
            output = hidden + self.mlp(normed)
        return output

    def attend(self, hidden: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """The first half: hidden (tokens, hidden_size) -> with attention added, and normed for the second."""
        attention, norm = self.self_attn, self.input_layernorm
        if step.length is not None:
            normed = norm(hidden)
            hidden = hidden + attention.on_gpu(normed, step.cosines, step.sines, step.cache, step.length)
        elif attention.can_step(hidden):
            hidden = attention.step(hidden, norm, step.cosines, step.sines, step.cache)
        else:
            hidden = hidden + attention(norm(hidden), step.cosines, step.sines, step.cache, step.blocks)
        return hidden, self.post_attention_layernorm(hidden)
