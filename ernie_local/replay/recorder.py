"""Records a trace while a model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ernie_local.config import Bank
from ernie_local.experts.keys import ExpertKey
from ernie_local.replay.trace import Forward, Trace

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class _Calls:
    """Of one forward: what each call chose, and the place of each token among those of its sequence."""

    token_indices: dict[Bank, NDArray[np.int64]] = field(default_factory=dict)
    expert_ids: list[NDArray[np.uint16]] = field(default_factory=list)
    expert_weights: list[NDArray[np.float32]] = field(default_factory=list)


class TraceRecorder:
    """A RouteHook. Give it to every engine of a model, from the model's first forward on.

    A replay begins with no page in memory, as a model does that was just loaded.
    """

    def __init__(self, model: str, top_k: int, page_bytes: Mapping[ExpertKey, int]) -> None:
        """page_bytes: of every page of the model."""
        self._model = model
        self._top_k = top_k
        self._page_bytes = page_bytes
        self._forwards: list[_Calls] = []
        self._last: tuple[int, Bank] | None = None

    def __call__(
        self,
        layer_id: int,
        bank: Bank,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        token_indices: torch.Tensor,
    ) -> None:
        """As RouteHook says."""
        rows = token_indices.cpu().numpy().copy()
        if self._begins(layer_id, bank, rows):
            self._forwards.append(_Calls())
        calls = self._forwards[-1]
        calls.token_indices.setdefault(bank, rows)
        calls.expert_ids.append(expert_ids.cpu().numpy().astype(np.uint16))
        calls.expert_weights.append(expert_weights.float().cpu().numpy().copy())
        self._last = (layer_id, bank)

    def trace(self) -> Trace:
        """What was noted until now."""
        forwards = tuple(_to_forward(calls) for calls in self._forwards)
        return Trace(self._model, self._top_k, self._page_bytes, forwards)

    def _begins(self, layer_id: int, bank: Bank, rows: NDArray[np.int64]) -> bool:
        """Layers come in order, in each text before vision; and a row of a forward has one bank."""
        if self._last is None or (layer_id, bank) <= self._last:  # "text" < "vision"
            return True
        known = self._forwards[-1].token_indices
        return any(other != bank and np.isin(rows, known[other]).any() for other in known)


def _to_forward(calls: _Calls) -> Forward:
    is_vision = np.zeros(sum(map(len, calls.token_indices.values())), np.bool_)
    if "vision" in calls.token_indices:
        is_vision[calls.token_indices["vision"]] = True
    # Each has a first token, if not of those banks that an interrupted forward came to.
    num_sequences = max(1, sum(int((places == 0).sum()) for places in calls.token_indices.values()))
    return Forward(
        is_vision, np.concatenate(calls.expert_ids), np.concatenate(calls.expert_weights), num_sequences
    )
