"""Routes tokens to the banks that serve them, and adds the shared experts.

Routed experts are computed by an ExpertProvider, wherever their weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ernie_local.config import Bank, ExpertBank, Modality, TextConfig
from ernie_local.kernels.arguments import LowRankExperts
from ernie_local.kernels.memory import send
from ernie_local.kernels.norm_route import route
from ernie_local.kernels.operators import suits_decode_ops
from ernie_local.model.kv_cache import CacheMemory
from ernie_local.model.layers import GatedMLP, PackedGatedMLP


class RoutedTokens(NamedTuple):
    """What one layer asks of one bank.

    hidden: (tokens, hidden_size); expert_ids: (tokens, top_k) int64, within the bank; expert_weights:
    (tokens, top_k) in hidden's dtype; shared_page: (1, page_bytes) uint8, an expert that every token visits
    with weight 1, only for providers with `takes_shared_page`; are_few: see ExpertsCall. adapter,
    shared_adapter: what is added to the bank's experts, and to that page.
    """

    layer_id: int
    bank: Bank
    hidden: Tensor
    expert_ids: Tensor
    expert_weights: Tensor
    shared_page: Tensor | None = None
    are_few: bool | None = None
    adapter: LowRankExperts | None = None
    shared_adapter: LowRankExperts | None = None

    def apart(self) -> RoutedTokens:
        """A row for each choice of each token, so that each gives its own result; no shared page."""
        return RoutedTokens(
            self.layer_id,
            self.bank,
            self.hidden.repeat_interleave(self.expert_ids.shape[1], 0),
            self.expert_ids.view(-1, 1),  # (tokens * top_k, 1)
            self.expert_weights.view(-1, 1),
            are_few=True,
            adapter=self.adapter,
        )


class ExpertProvider(Protocol):
    """Computes routed experts; the model knows nothing else about them."""

    takes_shared_page: bool  # whether `compute` adds the shared experts, where they are one packed page
    has_exact_rows: bool  # whether the pages of a token do not depend on tokens computed with it

    def describe(self) -> list[str]:
        """What a user should know of where experts are, a line each; may be none."""
        ...

    def check_unchanged(self) -> None:
        """Raise ModelUnusable if a file was changed from which any weights of the model are used."""
        ...

    def begin(self, rows: TokenRows) -> None:
        """Called when a forward begins: each layer will ask for the experts of `rows.by_bank`, in order."""
        ...

    def abort(self) -> None:
        """Forget what a forward has begun that will not end. It may have stopped between any two steps."""
        ...

    def make_room(self, owner: object, num_bytes: int) -> None:
        """Reserve `num_bytes` of the experts' memory for `owner`, a cache or an image being encoded.

        It holds until `owner` asks for another number or is gone. DoesNotFit if experts need the memory.
        """
        ...

    def cache_memory(self) -> CacheMemory | None:
        """Memory for one new KV cache, shared with experts; None if the cache allocates its own."""
        ...

    def give_up_memory(self, refusal: str) -> None:
        """Do with less of a GPU's memory for good, as it refused some that had been counted: others took it.

        refusal: what its allocator says. Nobody computes. DoesNotFit where experts have their least,
        OutOfMemory where they never give any.
        """
        ...

    def wait_until_resident(self) -> None:
        """Return when everything that stays in memory has been read, so that computing waits for no disk.

        Paged experts wait for nothing. ModelUnusable for a damaged page.
        """
        ...

    def compute(self, tokens: RoutedTokens) -> Tensor:
        """Weighted sum of each token's experts, and of the shared page if there is one.

        Returns a new (tokens, hidden_size) tensor.
        """
        ...


# Sees every routing decision, for capture, traces and tests: layer and bank, ids and weights of the experts,
# (tokens, top_k) each, and the place of each token among the new ones of its sequence, (tokens,).
RouteHook = Callable[[int, Bank, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Which rows of a forward each bank serves, worked out once for all layers.

    by_bank: (tokens of the bank,) int64 for each bank that serves any token, in the order of the config.
    num_sequences: to which the tokens belong; if more than one, each has one token.
    """

    by_bank: Mapping[Bank, Tensor]
    num_sequences: int = 1

    @staticmethod
    def of(
        is_vision: Tensor, banks: Iterable[ExpertBank], device: torch.device, num_sequences: int = 1
    ) -> TokenRows:
        """is_vision: (tokens,) bool, on the host, so that no GPU is waited for; rows are on `device`."""
        num_tokens = is_vision.shape[0]
        vision = is_vision.nonzero()[:, 0]  # (vision tokens,)
        present: set[Modality] = {"text", "vision"}
        if not 0 < len(vision) < num_tokens:
            present = {"vision"} if len(vision) else {"text"}
        rows: dict[Bank, Tensor] = {}
        for bank in banks:
            served = bank.serves & present
            if served == present:
                rows[bank.name] = torch.arange(num_tokens, device=device)
            elif served:
                rows[bank.name] = send(served_tokens(bank, is_vision).nonzero()[:, 0], device)
        return TokenRows(rows, num_sequences)

    def places(self, bank: Bank) -> Tensor:
        """Of each of the bank's tokens, its place among the new ones of its sequence, (tokens,)."""
        rows = self.by_bank[bank]
        return rows if self.num_sequences == 1 else torch.zeros_like(rows)

    @property
    def only_bank(self) -> Bank | None:
        """The bank that serves all tokens, which then need no gathering; None if there are several."""
        return next(iter(self.by_bank)) if len(self.by_bank) == 1 else None


class Router(nn.Module):
    """Chooses the experts of one bank that a token goes to, and their weights.

    The bias takes part in the choice only; the weights come from the plain softmax scores. Weights and
    arithmetic are float32 in every model dtype: a rounded score changes which expert is chosen, which is
    worse than any rounding inside one.
    """

    def __init__(self, hidden_size: int, num_experts: int, experts_per_token: int, norm_min: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(num_experts, dtype=torch.float32))
        self.experts_per_token = experts_per_token
        self.norm_min = norm_min

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
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


def served_tokens(bank: ExpertBank, is_vision: Tensor) -> Tensor:
    """Which tokens the bank serves, (tokens,) bool, as is_vision."""
    if "text" not in bank.serves:
        return is_vision
    return torch.ones_like(is_vision) if "vision" in bank.serves else ~is_vision


class MoEBlock(nn.Module):
    """Routed experts of the bank that serves the token, plus the shared experts, which see every token."""

    def __init__(self, config: TextConfig, layer_id: int) -> None:
        super().__init__()
        self.layer_id = layer_id
        # By bank. Their parameters carry the checkpoint's names, layers.N.moe.text_router.weight say.
        self.routers: dict[Bank, Router] = {}
        for bank in config.banks:
            router = Router(
                config.hidden_size, bank.num_experts, config.experts_per_token, config.moe_norm_min
            )
            self.routers[bank.name] = router
            self.add_module(f"{bank.name}_router", router)
        self.adapters: dict[Bank, LowRankExperts] = {}  # what is added to experts, by bank
        self.shared_experts: GatedMLP | PackedGatedMLP | None = None
        if config.num_shared_experts:
            self.shared_experts = GatedMLP(config.hidden_size, config.shared_expert_size)

    def forward(
        self, hidden: Tensor, rows: TokenRows, experts: ExpertProvider, on_route: RouteHook | None = None
    ) -> Tensor:
        """hidden: (tokens, hidden_size) -> (tokens, hidden_size)."""
        if (only := rows.only_bank) is not None:
            routed = self.serve(only, hidden, self.routers[only](hidden), rows, experts, on_route)
            shared = self.shared_apart(hidden, experts)
            return routed if shared is None else routed.add_(shared)
        routed = torch.empty_like(hidden)
        for bank, indices in rows.by_bank.items():
            own = hidden[indices]
            routed[indices] = self.serve(bank, own, self.routers[bank](own), rows, experts, on_route)
        # Once for all tokens, not once for each bank.
        if self.shared_experts is not None:
            routed += self.shared_experts(hidden)
        return routed

    def serve(
        self,
        bank: Bank,
        hidden: Tensor,
        chosen: tuple[Tensor, Tensor],
        rows: TokenRows,
        experts: ExpertProvider,
        on_route: RouteHook | None,
    ) -> Tensor:
        """Routed experts of the tokens that the bank serves; chosen: ids and weights, (tokens, top_k) each.

        With the shared experts, where these are one page and the bank serves all tokens.
        """
        if on_route is not None:
            on_route(self.layer_id, bank, *chosen, rows.places(bank))
        shared = self._shared_page(experts) if rows.only_bank is not None else None
        page, shared_adapter = (None, None) if shared is None else (shared.page, shared.adapter)
        adapters = self.adapters.get(bank), shared_adapter
        return experts.compute(RoutedTokens(self.layer_id, bank, hidden, *chosen, page, None, *adapters))

    def shared_apart(self, hidden: Tensor, experts: ExpertProvider) -> Tensor | None:
        """What `serve` leaves to be added: shared experts that are not computed with routed ones."""
        if self.shared_experts is None or self._shared_page(experts) is not None:
            return None
        output: Tensor = self.shared_experts(hidden)  # (tokens, hidden_size)
        return output

    def _shared_page(self, experts: ExpertProvider) -> PackedGatedMLP | None:
        """The shared experts, where they are one page and computed with routed ones."""
        shared = self.shared_experts
        return shared if isinstance(shared, PackedGatedMLP) and experts.takes_shared_page else None
