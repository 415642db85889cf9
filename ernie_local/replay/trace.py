"""Describes which experts tokens chose, forward by forward: all that a replay needs, without the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ernie_local.config import MODALITIES, Bank
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.plan import PagingPlan


@dataclass(frozen=True, slots=True)
class Forward:
    """One prompt chunk, or one decoded token.

    is_vision: (tokens,) bool, whether the bank of vision serves the token. expert_ids: (rows, top_k) uint16,
    within the bank; expert_weights: the same shape, float32. A row for each token of each layer: layers in
    order, in each the text tokens first. Fewer layers where the forward was interrupted; never a part of a
    bank.
    """

    is_vision: NDArray[np.bool_]
    expert_ids: NDArray[np.uint16]
    expert_weights: NDArray[np.float32]

    @property
    def tokens(self) -> dict[Bank, int]:
        """Tokens of each bank that has any, text first."""
        num_vision = int(self.is_vision.sum())
        counts: dict[Bank, int] = {"text": len(self.is_vision) - num_vision, "vision": num_vision}
        return {bank: count for bank, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class Call:
    """What one layer asked of one bank: expert_ids is (tokens, top_k)."""

    layer_id: int
    bank: Bank
    expert_ids: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Trace:
    """Of one model: its name, experts of a token, bytes of every page, and the forwards in order."""

    model: str
    top_k: int
    page_bytes: Mapping[ExpertKey, int]
    forwards: tuple[Forward, ...]

    @property
    def plan(self) -> PagingPlan:
        """How the model's pages share a memory."""
        return PagingPlan(self.page_bytes, self.top_k)

    @property
    def layer_ids(self) -> list[int]:
        """Layers that have experts."""
        return sorted({key.layer_id for key in self.page_bytes})

    @property
    def banks(self) -> list[Bank]:
        """Banks that have experts."""
        return [bank for bank in MODALITIES if any(key.bank == bank for key in self.page_bytes)]

    @property
    def decoded_tokens(self) -> int:
        """Forwards of one token."""
        return sum(len(forward.is_vision) == 1 for forward in self.forwards)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all other forwards."""
        return sum(len(forward.is_vision) for forward in self.forwards) - self.decoded_tokens

    def bank_bytes(self, bank: Bank) -> int:
        """Bytes of all pages of a bank."""
        return sum(size for key, size in self.page_bytes.items() if key.bank == bank)

    def calls(self, forward: Forward) -> Iterator[Call]:
        """The calls of one forward in order."""
        first = 0
        tokens = forward.tokens
        for layer_id in self.layer_ids:
            for bank, num_tokens in tokens.items():
                if first < len(forward.expert_ids):
                    last = first + num_tokens
                    yield Call(layer_id, bank, forward.expert_ids[first:last])
                    first = last
