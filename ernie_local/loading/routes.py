"""Which experts the tokens of a sequence chose, noted while an engine runs.

Knows nothing of what is done with the choices.
"""

from __future__ import annotations

import torch

from ernie_local.config import Bank
from ernie_local.engine import Engine


class RouteRecord:
    """A RouteHook. `choices`: one (tokens, top_k) int64 tensor per layer on the CPU, (tokens, 0) if dense.

    Ids count within the token's own bank, best first. Rows of tokens that never ran are not filled.
    Take it off the engine in the end: the two know each other, which would keep the model in memory.
    """

    def __init__(self, engine: Engine, num_tokens: int) -> None:
        """For the first `num_tokens` of the sequence that `engine` runs."""
        self._engine = engine
        text = engine.model.config.text
        self.choices = [
            torch.empty(num_tokens, text.experts_per_token if is_moe else 0, dtype=torch.int64)
            for is_moe in text.moe_layers
        ]

    def __call__(
        self,
        layer_id: int,
        bank: Bank,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        token_indices: torch.Tensor,
    ) -> None:
        """As RouteHook says."""
        del bank, expert_weights
        self.choices[layer_id][self._engine.length + token_indices.cpu()] = expert_ids.cpu()
