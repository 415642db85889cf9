"""Computes routed experts that are all in memory: from plain tensors, or on a GPU from packed pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from ernie_local.config import BankKey, TextConfig
from ernie_local.experts.gpu_memory import out_of_memory
from ernie_local.experts.math import PageMath, page_call
from ernie_local.kernels.arguments import LowRankExperts
from ernie_local.kernels.reference import adapted_down, inner_activations
from ernie_local.model.moe import RoutedTokens, TokenRows


@dataclass(frozen=True, slots=True)
class BankWeights:
    """gate_up: (experts, 2 * inner, hidden_size), gate rows first; down: (experts, hidden_size, inner)."""

    gate_up: torch.Tensor
    down: torch.Tensor

    def projection(self, expert_id: int, name: str) -> torch.Tensor:
        """The view that one tensor of the checkpoint fills; name: gate_proj, up_proj or down_proj."""
        gate, up = self.gate_up[expert_id].chunk(2)
        return {"gate_proj": gate, "up_proj": up, "down_proj": self.down[expert_id]}[name]

    def run(
        self, expert_id: int, hidden: torch.Tensor, adapter: LowRankExperts | None = None
    ) -> torch.Tensor:
        """down(silu(gate(x)) * up(x)) of one expert. hidden: (tokens, hidden_size) -> the same shape."""
        gate, up = functional.linear(hidden, self.gate_up[expert_id]).chunk(2, dim=-1)  # (tokens, inner) each
        inner = inner_activations(hidden, gate, up, adapter, expert_id)
        return adapted_down(inner, functional.linear(inner, self.down[expert_id]), adapter, expert_id)


class _AllInMemory:
    """What an ExpertProvider says of paging where all experts are in a memory of their own."""

    has_exact_rows = True  # as far as their products are

    def describe(self) -> list[str]:
        return []

    def check_unchanged(self) -> None:
        pass

    def begin(self, rows: TokenRows) -> None:
        pass

    def abort(self) -> None:
        pass

    def make_room(self, owner: object, num_bytes: int) -> None:
        pass

    def cache_memory(self) -> None:
        pass

    def give_up_memory(self, refusal: str) -> None:
        raise out_of_memory(refusal)

    def wait_until_resident(self) -> None:
        pass


class ResidentExperts(_AllInMemory):
    """An ExpertProvider over plain tensors."""

    takes_shared_page = False

    def __init__(self, config: TextConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Allocates every bank of every MoE layer, uninitialised."""
        self.banks: dict[BankKey, BankWeights] = {}
        for layer_id, bank in config.layer_banks():
            gate_up = (bank.num_experts, 2 * bank.expert_size, config.hidden_size)
            down = (bank.num_experts, config.hidden_size, bank.expert_size)
            self.banks[layer_id, bank.name] = BankWeights(
                torch.empty(gate_up, dtype=dtype, device=device),
                torch.empty(down, dtype=dtype, device=device),
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of all expert weights."""
        return sum(bank.gate_up.nbytes + bank.down.nbytes for bank in self.banks.values())

    def compute(self, tokens: RoutedTokens) -> torch.Tensor:
        """See ExpertProvider.compute; expert ids are trusted to lie within the bank."""
        assert tokens.shared_page is None
        compute = _one_token if tokens.hidden.shape[0] == 1 else _grouped
        return compute(self.banks[tokens.layer_id, tokens.bank], tokens)


def _one_token(weights: BankWeights, tokens: RoutedTokens) -> torch.Tensor:
    """Decode: a token's experts differ, so there is nothing to group."""
    output = torch.zeros_like(tokens.hidden)
    top_k = tokens.expert_ids.shape[1]
    # Ascending ids, as in `_grouped`: a token's sum is the same whether it came alone or in a chunk.
    for expert_id, choice in sorted(zip(tokens.expert_ids[0].tolist(), range(top_k), strict=True)):
        result = weights.run(expert_id, tokens.hidden, tokens.adapter)
        output += result * tokens.expert_weights[:, choice]
    return output


def _grouped(weights: BankWeights, tokens: RoutedTokens) -> torch.Tensor:
    """Prefill: one matrix product per expert that occurs, over all of its tokens."""
    num_experts, top_k = weights.down.shape[0], tokens.expert_ids.shape[1]
    flat_ids = tokens.expert_ids.flatten()  # (tokens * top_k,)
    order = flat_ids.argsort(stable=True)
    rows = order // top_k  # (tokens * top_k,) of hidden, grouped by expert
    flat_weights = tokens.expert_weights.flatten()[order, None]  # (tokens * top_k, 1)
    output = torch.zeros_like(tokens.hidden)
    # A GPU's bincount would wait for the least and the largest id first.
    counts = flat_ids.new_zeros(num_experts).scatter_add_(0, flat_ids, torch.ones_like(flat_ids))
    start = 0
    for expert_id, count in enumerate(counts.tolist()):
        if count == 0:
            continue
        group = slice(start, start + count)
        start += count
        result = weights.run(expert_id, tokens.hidden[rows[group]], tokens.adapter)
        output.index_add_(0, rows[group], result * flat_weights[group])
    return output


class PackedExperts(_AllInMemory):
    """An ExpertProvider over packed pages on a GPU: expert i of a bank lies in slot i."""

    takes_shared_page = True

    def __init__(self, banks: dict[BankKey, torch.Tensor], gpu_math: Mapping[BankKey, PageMath]) -> None:
        """banks: (experts, slot bytes) uint8 for every (layer, bank); pages may be of different formats.

        gpu_math: what computes each of them.
        """
        self.banks = banks
        self._gpu_math = gpu_math

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return sum(slots.nbytes for slots in self.banks.values())

    def compute(self, tokens: RoutedTokens) -> torch.Tensor:
        """See ExpertProvider.compute."""
        key = tokens.layer_id, tokens.bank
        call = page_call(tokens, self.banks[key], None)
        output = torch.zeros_like(tokens.hidden, dtype=torch.float32)
        self._gpu_math[key].add(output, call)
        return output.to(tokens.hidden.dtype)
