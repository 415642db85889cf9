"""The router of one bank: which experts a token goes to, and with what weights.

Knows nothing of the experts themselves. Weights and arithmetic are float32 in every model dtype: a rounded
score changes which expert is chosen, which is worse than any rounding inside one.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ernie_local.kernels.norm_route import route
from ernie_local.kernels.operators import suits_decode_ops


class Router(nn.Module):
    """softmax scores; the bias takes part in the choice only, the weights come from the plain scores."""

    def __init__(self, hidden_size: int, num_experts: int, experts_per_token: int, norm_min: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(num_experts, dtype=torch.float32))
        self.experts_per_token = experts_per_token
        self.norm_min = norm_min

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden: (tokens, hidden_size) -> expert ids and, in hidden's dtype, weights, (tokens, top_k) each.

        The order of operations is the published one, so that near-ties fall the same way.
        """
        if suits_decode_ops(hidden):
            return route(hidden, self.weight, self.bias, self.experts_per_token, self.norm_min)
        scores = functional.softmax(functional.linear(hidden.float(), self.weight), dim=-1)
        expert_ids = torch.topk(scores + self.bias, self.experts_per_token, dim=-1).indices
        chosen = scores.gather(-1, expert_ids)
        weights = chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=self.norm_min)
        return expert_ids, weights.to(hidden.dtype)
