"""The mixture-of-experts block: two routers, shared experts, and the protocol to ask for routed ones.

Knows no weights of routed experts and no paging: an ExpertProvider computes them wherever they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from ernie_local.config import TextConfig
from ernie_local.kernels.send import send
from ernie_local.model.kv_cache import CacheMemory
from ernie_local.model.mlp import GatedMLP
from ernie_local.model.packed_linear import PackedGatedMLP
from ernie_local.model.router import Router

Bank = Literal["text", "vision"]
BANKS: tuple[Bank, Bank] = ("text", "vision")


class ExpertProvider(Protocol):
    """Computes routed experts; the model knows nothing else about them."""

    takes_shared_page: bool  # whether `compute` adds the shared experts, where they are one packed page

    def describe(self) -> list[str]:
        """What somebody who waits for answers should know of where experts are, a line each; may be none."""
        ...

    def begin(self, rows: TokenRows) -> None:
        """A forward begins: each layer will ask for the experts of the banks that have rows, text first."""
        ...

    def make_room(self, owner: object, num_bytes: int) -> None:
        """Keep this much of the memory that experts may take for `owner`, a cache or an image being encoded.

        Until it says another number, or is gone. DoesNotFit where experts need more of what is left.
        """
        ...

    def cache_memory(self) -> CacheMemory | None:
        """Memory for one new KV cache, shared with experts. None if the cache is to have its own."""
        ...

    def compute(
        self,
        layer_id: int,
        bank: Bank,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        shared_page: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Weighted sum of each token's experts.

        hidden: (tokens, hidden_size); expert_ids: (tokens, top_k) int64, within the bank; expert_weights:
        (tokens, top_k) in hidden's dtype; shared_page: (1, page_bytes) uint8, an expert that every token
        visits with weight 1, given only if `takes_shared_page`. Returns a new (tokens, hidden_size) tensor.
        """
        ...


class RouteHook(Protocol):
    """Sees every routing decision: for capture, traces and tests."""

    def __call__(
        self,
        layer_id: int,
        bank: Bank,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        token_indices: torch.Tensor,
    ) -> None:
        """expert_ids, expert_weights: (tokens, top_k); token_indices: (tokens,) rows of the forward."""
        ...


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Which rows of a forward belong to which bank, worked out once for all layers.

    A side without tokens is None, so that the other side needs no gathering.
    """

    num_tokens: int
    text: torch.Tensor | None
    vision: torch.Tensor | None

    @staticmethod
    def from_mask(is_vision: torch.Tensor, device: torch.device) -> TokenRows:
        """is_vision: (tokens,) bool, on the host, which nothing has to tell it then; rows are on `device`."""
        num_tokens = is_vision.shape[0]
        vision = is_vision.nonzero()[:, 0]  # (vision tokens,)
        if 0 < len(vision) < num_tokens:
            text = (~is_vision).nonzero()[:, 0]  # (text tokens,)
            return TokenRows(num_tokens, send(text, device), send(vision, device))
        every = torch.arange(num_tokens, device=device)
        return TokenRows(num_tokens, None, every) if len(vision) else TokenRows(num_tokens, every, None)


class MoEBlock(nn.Module):
    """Routed experts of the token's own bank plus the shared experts, which see every token."""

    def __init__(self, config: TextConfig, layer_id: int) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.text_router = _router(config)
        self.vision_router = _router(config)
        self.shared_experts: GatedMLP | PackedGatedMLP | None = None
        if config.num_shared_experts:
            self.shared_experts = GatedMLP(config.hidden_size, config.shared_expert_size)

    def forward(
        self,
        hidden: torch.Tensor,
        rows: TokenRows,
        experts: ExpertProvider,
        on_route: RouteHook | None = None,
    ) -> torch.Tensor:
        """hidden: (tokens, hidden_size) -> (tokens, hidden_size)."""
        if rows.text is None or rows.vision is None:
            is_text = rows.vision is None
            chosen = (self.text_router if is_text else self.vision_router)(hidden)
            routed = self.serve("text" if is_text else "vision", hidden, chosen, rows, experts, on_route)
            shared = self.shared_apart(hidden, experts)
            return routed if shared is None else routed.add_(shared)
        routed = torch.empty_like(hidden)
        for bank, router, indices in (
            (BANKS[0], self.text_router, rows.text),
            (BANKS[1], self.vision_router, rows.vision),
        ):
            own = hidden[indices]
            routed[indices] = self._compute(bank, own, router(own), indices, experts, on_route)
        # Once for all tokens, not once for each bank.
        if self.shared_experts is not None:
            routed += self.shared_experts(hidden)
        return routed

    def serve(
        self,
        bank: Bank,
        hidden: torch.Tensor,
        chosen: tuple[torch.Tensor, torch.Tensor],
        rows: TokenRows,
        experts: ExpertProvider,
        on_route: RouteHook | None,
    ) -> torch.Tensor:
        """As `forward` without `shared_apart`, for tokens of one bank; chosen: ids and weights."""
        indices = rows.text if bank == "text" else rows.vision
        assert indices is not None
        page = self._shared_page(experts)
        return self._compute(bank, hidden, chosen, indices, experts, on_route, page)

    def shared_apart(self, hidden: torch.Tensor, experts: ExpertProvider) -> torch.Tensor | None:
        """What `serve` leaves to be added: shared experts that are not computed with routed ones."""
        if self.shared_experts is None or self._shared_page(experts) is not None:
            return None
        output: torch.Tensor = self.shared_experts(hidden)  # (tokens, hidden_size)
        return output

    def _shared_page(self, experts: ExpertProvider) -> torch.Tensor | None:
        shared = self.shared_experts
        return shared.page if isinstance(shared, PackedGatedMLP) and experts.takes_shared_page else None

    def _compute(
        self,
        bank: Bank,
        hidden: torch.Tensor,
        chosen: tuple[torch.Tensor, torch.Tensor],
        token_indices: torch.Tensor,
        experts: ExpertProvider,
        on_route: RouteHook | None,
        shared_page: torch.Tensor | None = None,
    ) -> torch.Tensor:
        expert_ids, expert_weights = chosen
        if on_route is not None:
            on_route(self.layer_id, bank, expert_ids, expert_weights, token_indices)
        return experts.compute(self.layer_id, bank, hidden, expert_ids, expert_weights, shared_page)


def _router(config: TextConfig) -> Router:
    return Router(config.hidden_size, config.num_experts, config.experts_per_token, config.moe_norm_min)
