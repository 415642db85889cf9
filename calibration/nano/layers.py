"""The trainable decoder layer and its parts: bfloat16 products, attention, SwiGLU, banks of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx
from torch.nn import functional

from nano.shape import NanoShape

CAPACITY_STEP = 256  # tokens
CAPACITY_OVER_MEAN, LEAST_CAPACITY = 1.5, 1024


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


def unfused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Plain attention; backward faster than the fused CPU kernel.

    query: (batch, heads, tokens, head_dim), key and value with as many heads or a divisor of them; mask
    (tokens, tokens) is added. Returns the mix, shaped like the query, and the scores before the softmax,
    (batch, heads, tokens, tokens).
    """
    batch, heads, tokens, head_dim = query.shape
    groups = heads // key.shape[1]
    # (batch * key heads, groups * tokens, head_dim): all that look at one key are rows of one product
    query = (query * head_dim**-0.5).reshape(-1, groups * tokens, head_dim)
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    if mask is None:
        scores = torch.bmm(query, key.mT)
    else:
        scores = torch.baddbmm(mask.to(query.dtype).repeat(groups, 1), query, key.mT)
    mixed = torch.bmm(scores.softmax(-1), value)
    return mixed.view(batch, heads, tokens, head_dim), scores.view(batch, heads, tokens, tokens)


class PlaceRows(Function):
    """`rows.repeat_interleave(copies)[forward_index]`, zeros where the index is past the end; the gradient is
    the opposite gather.

    The two indices are inverse to each other, so neither direction needs a scatter.
    """

    @staticmethod
    def forward(
        context: FunctionCtx, rows: Tensor, forward_index: Tensor, backward_index: Tensor, copies: int
    ) -> Tensor:
        """Rows in their new places, (places, width)."""
        context.backward_index, context.copies = backward_index, copies  # type: ignore[attr-defined]
        return _gather_or_zero(rows, forward_index // copies)

    @staticmethod
    def backward(context: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradients in the old places, summed over copies."""
        gradient = _gather_or_zero(gradients[0], context.backward_index)  # type: ignore[attr-defined]
        copies: int = context.copies  # type: ignore[attr-defined]
        if copies > 1:
            gradient = gradient.view(-1, copies, gradient.shape[1]).sum(1)
        return gradient, None, None, None


def _gather_or_zero(rows: Tensor, index: Tensor) -> Tensor:
    return torch.cat((rows, rows.new_zeros(1, rows.shape[1])))[index.clamp(max=rows.shape[0])]


def place_rows(rows: Tensor, forward_index: Tensor, backward_index: Tensor, copies: int = 1) -> Tensor:
    """`PlaceRows` with its type."""
    placed: Tensor = PlaceRows.apply(rows, forward_index, backward_index, copies)  # type: ignore[no-untyped-call]
    return placed


class TrainedBank(nn.Module):
    """One bank of experts, its router and its selection bias; all experts run in one padded product."""

    def __init__(self, shape: NanoShape, inner: int) -> None:
        super().__init__()
        self.top_k = shape.experts_per_token
        self.router = nn.Parameter(torch.empty(shape.num_experts, shape.hidden_size))
        self.gate_up = nn.Parameter(torch.empty(shape.num_experts, shape.hidden_size, 2 * inner))
        self.down = nn.Parameter(torch.empty(shape.num_experts, inner, shape.hidden_size))
        self.bias: Tensor
        self.load: Tensor
        self.register_buffer("bias", torch.zeros(shape.num_experts))
        self.register_buffer("load", torch.zeros(shape.num_experts), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(tokens, hidden) float32 -> (tokens, hidden) float32."""
        tokens, width = hidden.shape
        probabilities = functional.linear(hidden, self.router).softmax(-1)  # (tokens, experts)
        chosen = (probabilities.detach() + self.bias).topk(self.top_k, dim=-1).indices  # (tokens, top_k)
        weights = probabilities.gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
        flat = chosen.reshape(-1)  # (tokens * top_k)
        counts = torch.bincount(flat, minlength=self.router.shape[0])
        if self.training:
            self.load += counts
        # Few different capacities: oneDNN compiles a kernel for each new shape, dearer than padding.
        # A choice beyond an expert's capacity is dropped; with balanced loads that does not happen.
        room = max(LEAST_CAPACITY, int(CAPACITY_OVER_MEAN * flat.numel() / counts.numel()))
        most = min(int(counts.max()), room)
        capacity = -(-most // CAPACITY_STEP) * CAPACITY_STEP
        order = flat.argsort(stable=True)
        expert = flat[order]
        rank = torch.arange(flat.numel()) - (counts.cumsum(0) - counts)[expert]
        place = torch.where(rank < capacity, expert * capacity + rank, counts.numel() * capacity)
        place_of_choice = torch.empty_like(order)
        place_of_choice[order] = place
        choice_of_place = torch.full((counts.numel() * capacity + 1,), flat.numel())
        choice_of_place[place] = order
        choice_of_place = choice_of_place[:-1]
        rows = place_rows(hidden.bfloat16(), choice_of_place, place_of_choice, self.top_k)
        rows = rows.view(-1, capacity, width)
        gate, up = torch.bmm(rows, self.gate_up.bfloat16()).chunk(2, dim=-1)  # (experts, capacity, inner)
        rows = torch.bmm(functional.silu(gate) * up, self.down.bfloat16()).view(-1, width)
        rows = place_rows(rows, place_of_choice, choice_of_place).view(tokens, self.top_k, width)
        return torch.bmm(weights.bfloat16().unsqueeze(1), rows).squeeze(1).float()

    @torch.no_grad()
    def balance(self, speed: float) -> None:
        """Move the selection bias against the load since the last call (auxiliary-loss-free balancing)."""
        if self.load.sum() > 0:
            self.bias += speed * torch.sign(self.load.mean() - self.load)
            self.bias -= self.bias.mean()
        self.load.zero_()


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

    def attention(self, x: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """Causal attention over (batch, tokens, width), and its scores (batch, heads, tokens, tokens).

        Padding lies at the end, where nothing looks.
        """
        batch, tokens, width = x.shape
        shape = self.shape
        kv_width = shape.num_key_value_heads * shape.head_dim
        turned, value = product(x, self.qkv).split((width + kv_width, kv_width), dim=-1)
        # (batch * tokens, heads and key heads, head_dim / 2): every conversation has its own positions
        pairs = torch.view_as_complex(turned.float().reshape(batch * tokens, -1, shape.head_dim // 2, 2))
        turned = torch.view_as_real(pairs * rotations[:, None]).to(value.dtype)
        # (batch, tokens, heads of all three, head_dim) -> (batch, heads of each, tokens, head_dim)
        turned = turned.view(batch, tokens, -1, shape.head_dim).transpose(1, 2)
        query, key = turned.tensor_split((shape.num_heads,), dim=1)
        value = value.reshape(batch, tokens, -1, shape.head_dim).transpose(1, 2)
        mask = torch.full((tokens, tokens), -1e4).triu(1)
        mixed, scores = unfused_attention(query, key, value, mask)
        return product(mixed.transpose(1, 2).reshape(batch, tokens, width), self.out), scores

    def forward(
        self,
        x: Tensor,
        rotations: Tensor,
        rows: dict[str, Tensor],
        shared_scale: Tensor | None = None,
        only: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(batch, tokens, width) float32 -> (batch * tokens, width), and the attention's scores.

        `rotations`: by position, (batch * tokens, head_dim / 2) complex; `only`: of batch * tokens, those
        that go on from the attention, None for all; `rows`: of these, those of each bank. `shared_scale`
        (batch * tokens, 1) multiplies what the shared expert says, in training only.
        """
        width = x.shape[-1]
        mixed, scores = self.attention(functional.rms_norm(x, (width,), self.norm1, 1e-5), rotations)
        flat = (x + mixed).view(-1, width)
        if only is not None:
            flat = flat[only]
        normed = functional.rms_norm(flat, (width,), self.norm2, 1e-5)
        shared = self.mlp(normed)
        if not self.banks:
            return flat + shared, scores
        flat = flat + (shared if shared_scale is None else shared * shared_scale)
        routed = torch.zeros_like(normed)
        for name, own in rows.items():
            if own.numel():
                routed = routed.index_copy(0, own, self.banks[name](normed[own]))
        return flat + routed, scores
