"""Keeps routed experts' packed pages in memory, one tensor of slots per (layer, bank), and computes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ernie_local.config import BankKey
from ernie_local.experts.page_math import PageMath, page_call
from ernie_local.kernels.experts import packed_experts
from ernie_local.model.moe import RoutedTokens, TokenRows


class PackedExperts:
    """An ExpertProvider over packed pages: expert i of a bank lies in slot i."""

    takes_shared_page = True

    def __init__(
        self, banks: dict[BankKey, torch.Tensor], gpu_math: Mapping[BankKey, PageMath] | None = None
    ) -> None:
        """banks: (experts, slot bytes) uint8 for every (layer, bank); pages may be of different formats.

        gpu_math: what computes each of them where they lie on a GPU; None on the processor.
        """
        self.banks = banks
        self._gpu_math = gpu_math

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return sum(slots.nbytes for slots in self.banks.values())

    def describe(self) -> list[str]:
        """Nothing: every expert is in memory."""
        return []

    def begin(self, rows: TokenRows) -> None:
        """See ExpertProvider.begin; everything is there."""

    def make_room(self, owner: object, num_bytes: int) -> None:
        """See ExpertProvider.make_room; all experts stay."""

    def cache_memory(self) -> None:
        """See ExpertProvider.cache_memory; experts share theirs with nobody."""

    def compute(self, tokens: RoutedTokens) -> torch.Tensor:
        """See ExpertProvider.compute."""
        key = tokens.layer_id, tokens.bank
        call = page_call(tokens, self.banks[key], None)
        if self._gpu_math is None:
            return packed_experts(call)
        output = torch.zeros_like(tokens.hidden, dtype=torch.float32)
        self._gpu_math[key].add(output, call)
        return output.to(tokens.hidden.dtype)
