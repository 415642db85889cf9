"""Computes one bank of experts in training: router, selection bias, and all experts in padded products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nano.shape import NanoShape

CAPACITY_STEP = 256  # tokens
CAPACITY_OVER_MEAN = 1.5


class PlaceRows(torch.autograd.Function):
    """`rows[forward_index]` with zero rows where the index is past the end; the gradient is the opposite
    gather.

    The two indices are inverse to each other, so neither direction needs a scatter.
    """

    @staticmethod
    def forward(
        context: torch.autograd.function.FunctionCtx,
        rows: Tensor,
        forward_index: Tensor,
        backward_index: Tensor,
    ) -> Tensor:
        """Rows in their new places, (places, width)."""
        context.backward_index = backward_index  # type: ignore[attr-defined]
        return _gather_or_zero(rows, forward_index)

    @staticmethod
    def backward(
        context: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None, None]:
        """Gradients in the old places."""
        return _gather_or_zero(gradients[0], context.backward_index), None, None  # type: ignore[attr-defined]


def _gather_or_zero(rows: Tensor, index: Tensor) -> Tensor:
    return torch.cat((rows, rows.new_zeros(1, rows.shape[1])))[index.clamp(max=rows.shape[0])]


def place_rows(rows: Tensor, forward_index: Tensor, backward_index: Tensor) -> Tensor:
    """`PlaceRows` with its type."""
    placed: Tensor = PlaceRows.apply(rows, forward_index, backward_index)  # type: ignore[no-untyped-call]
    return placed


class TrainedBank(nn.Module):
    """One bank of experts with its router and its selection bias."""

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
        most = min(int(counts.max()), int(CAPACITY_OVER_MEAN * flat.numel() / counts.numel()))
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
        repeated = hidden.bfloat16().unsqueeze(1).expand(-1, self.top_k, -1).reshape(-1, width)
        rows = place_rows(repeated, choice_of_place, place_of_choice).view(-1, capacity, width)
        gate, up = torch.bmm(rows, self.gate_up.bfloat16()).chunk(2, dim=-1)  # (experts, capacity, inner)
        rows = torch.bmm(functional.silu(gate) * up, self.down.bfloat16()).view(-1, width)
        rows = place_rows(rows, place_of_choice, choice_of_place).view(tokens, self.top_k, width)
        return (weights.unsqueeze(-1) * rows).sum(1)

    @torch.no_grad()
    def balance(self, speed: float) -> None:
        """Move the selection bias against the load since the last call (auxiliary-loss-free balancing)."""
        if self.load.sum() > 0:
            self.bias += speed * torch.sign(self.load.mean() - self.load)
            self.bias -= self.bias.mean()
        self.load.zero_()
