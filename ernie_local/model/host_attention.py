"""Attends on the CPU in layers whose attention lies in RAM beside a GPU.

Hidden states come down before attention and go up behind it, a row for each token: keys, values and weights
stay where they are, and all tokens of a layer are attended to in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ernie_local.config import ModelConfig
from ernie_local.kernels.memory import receive, send
from ernie_local.model.attention import AttentionStep, JoinedAttention, SelfAttention, choose_attention
from ernie_local.model.decoder import DecoderLayer
from ernie_local.model.kv_cache import KVCache
from ernie_local.model.layers import RMSNorm
from ernie_local.model.memory_use import cpu_attention_way


@dataclass(frozen=True, slots=True)
class HostAttention(AttentionStep):
    """The first `num_layers` layers attend as `below` says, on the CPU in `dtype`; others as `above` says."""

    below: AttentionStep
    above: AttentionStep
    num_layers: int
    dtype: torch.dtype

    @staticmethod
    def under(
        above: AttentionStep,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        cache: KVCache,
        config: ModelConfig,
        first: nn.Module,
    ) -> HostAttention:
        """For the layers that `cache` has in RAM, of which `first` is one. hidden, angles: as of
        `choose_attention`, on the GPU; the host waits for the angles."""
        assert isinstance(first, DecoderLayer)
        dtype = first.input_layernorm.weight.dtype
        like = torch.empty(hidden.shape, dtype=dtype, device="cpu")
        cosines, sines = map(receive, angles)
        way = cpu_attention_way(config, str(dtype).removeprefix("torch."))
        below = choose_attention(like, cosines, sines, cache, way)
        return HostAttention(below, above, cache.host_layers, dtype)

    def add_to(self, hidden: Tensor, norm: RMSNorm, attention: SelfAttention) -> Tensor:
        """See AttentionStep; hidden is on the GPU, and so is the result. The host waits for it in `below`."""
        if attention.layer_id >= self.num_layers:
            return self.above.add_to(hidden, norm, attention)
        attended = self.below.add_to(receive(hidden).to(self.dtype), norm, attention)
        return send(attended.to(hidden.dtype), hidden.device)


def join_tokens(steps: Sequence[AttentionStep]) -> AttentionStep:
    """How one token of each of several sequences attends, by how each would alone."""
    on_host = [one for one in steps if isinstance(one, HostAttention)]
    if not on_host:
        return JoinedAttention([(1, one) for one in steps])
    below, above = (
        JoinedAttention([(1, one) for one in parts])
        for parts in ([one.below for one in on_host], [one.above for one in on_host])
    )
    return HostAttention(below, above, on_host[0].num_layers, on_host[0].dtype)
