"""The trainable decoder layer and its parts: bfloat16 products, rotary embedding, attention, SwiGLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nano.bank import TrainedBank
from nano.shape import NanoShape


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer in bfloat16; `weight` (out, in) stays float32 for the optimizer."""
    return functional.linear(x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16())


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(2 * inner, width))
        self.down = nn.Parameter(torch.empty(width, inner))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width) bfloat16."""
        gate, up = product(x, self.gate_up).chunk(2, dim=-1)
        return product(functional.silu(gate) * up, self.down)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved rotary embedding; x (batch, heads, tokens, head_dim), cos, sin (tokens, head_dim / 2)."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).bfloat16()


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Plain causal attention; backward faster than the fused CPU kernel.

    All inputs (batch, heads, tokens, head_dim); returns the mix in the same shape, and the scores before the
    softmax, (batch, heads, tokens, tokens).
    """
    batch, heads, tokens, head_dim = query.shape
    scores = torch.bmm(
        query.flatten(0, 1) * head_dim**-0.5, key.flatten(0, 1).mT
    )  # (batch * heads, tokens, tokens)
    scores = scores + torch.full((tokens, tokens), -1e4, dtype=scores.dtype).triu(1)
    mixed = torch.bmm(scores.softmax(-1), value.flatten(0, 1)).view(batch, heads, tokens, head_dim)
    return mixed, scores.view(batch, heads, tokens, tokens)


class Layer(nn.Module):
    """One decoder layer; layer 0 is dense, the others hold two banks and a shared expert."""

    def __init__(self, shape: NanoShape, dense: bool) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = shape.hidden_size, shape.num_key_value_heads * shape.head_dim
        self.norm1 = nn.Parameter(torch.ones(width))
        self.norm2 = nn.Parameter(torch.ones(width))
        self.qkv = nn.Parameter(torch.empty(width + 2 * kv_width, width))
        self.out = nn.Parameter(torch.empty(width, width))
        self.mlp = SwiGlu(width, shape.dense_size if dense else shape.text_expert_size)
        self.banks = nn.ModuleDict()
        if not dense:
            self.banks["text"] = TrainedBank(shape, shape.text_expert_size)
            self.banks["vision"] = TrainedBank(shape, shape.vision_expert_size)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Causal attention over (batch, tokens, width), and its scores (batch, heads, tokens, tokens).

        Padding lies at the end, where nothing looks.
        """
        batch, tokens, width = x.shape
        shape = self.shape
        kv_width = shape.num_key_value_heads * shape.head_dim
        query, key, value = product(x, self.qkv).split((width, kv_width, kv_width), dim=-1)
        query = query.view(batch, tokens, shape.num_heads, shape.head_dim).transpose(1, 2)
        key = key.view(batch, tokens, shape.num_key_value_heads, shape.head_dim).transpose(1, 2)
        value = value.view(batch, tokens, shape.num_key_value_heads, shape.head_dim).transpose(1, 2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        groups = shape.num_heads // shape.num_key_value_heads
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        mixed, scores = causal_attention(query, key, value)
        return product(mixed.transpose(1, 2).reshape(batch, tokens, width), self.out), scores

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        text_rows: Tensor,
        vision_rows: Tensor,
        shared_scale: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(batch, tokens, width) float32 -> the same, and the attention's scores.

        `shared_scale` (batch, tokens, 1) multiplies what the shared expert says, in training only.
        """
        width = x.shape[-1]
        mixed, scores = self.attention(functional.rms_norm(x, (width,), self.norm1, 1e-5), cos, sin)
        x = x + mixed
        normed = functional.rms_norm(x, (width,), self.norm2, 1e-5)
        if not self.banks:
            return x + self.mlp(normed), scores
        shared = self.mlp(normed)
        x = x + (shared if shared_scale is None else shared * shared_scale)
        flat = normed.reshape(-1, width)  # (batch * tokens, width)
        routed = torch.zeros_like(flat)
        for name, rows in (("text", text_rows), ("vision", vision_rows)):
            if rows.numel():
                routed = routed.index_copy(0, rows, self.banks[name](flat[rows]))
        return x + routed.view_as(x), scores
