"""Computes one decoder layer: attention, then a dense MLP or a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ernie_local.config import TextConfig
from ernie_local.model.attention import AttentionStep, SelfAttention
from ernie_local.model.layers import GatedMLP, PackedGatedMLP, RMSNorm
from ernie_local.model.moe import ExpertProvider, MoEBlock, RouteHook, TokenRows


@dataclass(frozen=True, slots=True)
class LayerStep:
    """What all layers of one forward share, worked out once."""

    attention: AttentionStep
    rows: TokenRows
    experts: ExpertProvider
    on_route: RouteHook | None


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), where the MLP is dense or a mixture of experts."""

    def __init__(self, config: TextConfig, layer_id: int, *, is_packed: bool = False) -> None:
        """is_packed: whether weights of the model are, so that norms may be computed natively everywhere."""
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps, always_native=is_packed)
        self.self_attn = SelfAttention(config, layer_id)
        self.post_attention_layernorm = RMSNorm(size, eps, always_native=is_packed)
        self.moe: MoEBlock | None = None
        self.mlp: GatedMLP | PackedGatedMLP | None = None
        if config.moe_layers[layer_id]:
            self.moe = MoEBlock(config, layer_id)
        else:
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor, step: LayerStep) -> Tensor:
        """hidden: (tokens, hidden_size) -> (tokens, hidden_size)."""
        hidden, normed = self.attend(hidden, step)
        if self.moe is not None:
            output: Tensor = hidden + self.moe(normed, step.rows, step.experts, step.on_route)
        else:
            assert self.mlp is not None
            output = hidden + self.mlp(normed)
        return output

    def attend(self, hidden: Tensor, step: LayerStep) -> tuple[Tensor, Tensor]:
        """The first half: hidden (tokens, hidden_size) -> with attention added, and normed for the second."""
        hidden = step.attention.add_to(hidden, self.input_layernorm, self.self_attn)
        return hidden, self.post_attention_layernorm(hidden)
