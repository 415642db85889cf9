"""Computes experts from pages that lie somewhere in one memory, packed or plain."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from ernie_local.experts.keys import UNIT_BYTES
from ernie_local.kernels.arguments import ABSENT_SLOT, ExpertsCall
from ernie_local.kernels.experts import add_packed_experts
from ernie_local.model.moe import RoutedTokens


def page_call(tokens: RoutedTokens, memory: torch.Tensor, places: torch.Tensor | None) -> ExpertsCall:
    """The call that computes these tokens' experts from a memory of pages, (units, UNIT_BYTES) uint8.

    places: (experts,) int64, see ExpertsCall.
    """
    return ExpertsCall(
        tokens.hidden, memory, tokens.expert_ids, tokens.expert_weights, tokens.shared_page, places
    )


class PageMath(Protocol):
    """Computes the routed experts of one layer and bank from a memory of pages."""

    takes_shared_page: bool  # as of an ExpertProvider

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        """Add to each token's row the weighted sum of those of its experts that have a place.

        output: (tokens, hidden_size) float32.
        """
        ...


class PackedPageMath:
    """From packed pages, by the operators."""

    takes_shared_page = True

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        """Add them, each by its page's own format."""
        add_packed_experts(output, call)


class PlainPageMath:
    """From pages of plain numbers: gate, up and down, row after row."""

    takes_shared_page = False

    def __init__(self, dtype: torch.dtype, hidden_size: int, inner_size: int) -> None:
        """dtype: of the numbers in the pages."""
        self._dtype = dtype
        self._hidden_size = hidden_size
        self._inner_size = inner_size

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        """Add them in the dtype of the tokens; the call has places and no shared page."""
        assert call.shared_page is None
        assert call.places is not None
        hidden = call.hidden
        for expert_id in call.expert_ids.unique().tolist():
            place = int(call.places[expert_id])
            if place == ABSENT_SLOT:
                continue
            rows, choices = (call.expert_ids == expert_id).nonzero(as_tuple=True)
            gate_up, down = self._matrices(call.slots, place, hidden.dtype)
            gate, up = functional.linear(hidden[rows], gate_up).chunk(2, dim=-1)  # (chosen, inner) each
            result = functional.linear(functional.silu(gate) * up, down)
            output.index_add_(0, rows, (result * call.weights[rows, choices, None]).float())

    def _matrices(
        self, memory: torch.Tensor, place: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """gate_up, (2 * inner, hidden), and down, (hidden, inner), as the computation wants them."""
        numbers = memory.view(-1)[place * UNIT_BYTES :]
        count = self._inner_size * self._hidden_size
        plain = numbers[: 3 * count * self._dtype.itemsize].view(self._dtype).to(dtype)
        gate_up = plain[: 2 * count].view(2 * self._inner_size, self._hidden_size)
        return gate_up, plain[2 * count :].view(self._hidden_size, self._inner_size)
