"""Holds what an adapter adds to each weight: a product of two thin matrices, under our names of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adds `rows_by_rank @ rank_by_columns` to a weight of (rows, columns). The adapter's scale is in it.

    rank_by_columns: (rank, columns), `lora_A` in PEFT; rows_by_rank: (rows, rank), `lora_B` times the scale.
    """

    rank_by_columns: Tensor
    rows_by_rank: Tensor

    @property
    def rank(self) -> int:
        """The width between both matrices."""
        return len(self.rank_by_columns)

    @property
    def num_bytes(self) -> int:
        """Of both matrices in memory."""
        return self.rank_by_columns.nbytes + self.rows_by_rank.nbytes

    def weight(self) -> Tensor:
        """What is added, as one matrix: (rows, columns) float32."""
        return self.rows_by_rank.float() @ self.rank_by_columns.float()


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is added to which weights: by our name of each, as `Checkpoint.names` has it."""

    weights: Mapping[str, LowRank]

    @property
    def num_bytes(self) -> int:
        """Of all matrices in memory."""
        return sum(one.num_bytes for one in self.weights.values())


def join_adapters(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that adds what all of `adapters` add; its ranks are the sums of theirs. A single one is
    not copied."""
    if len(adapters) == 1:
        return adapters[0]
    names = dict.fromkeys(name for adapter in adapters for name in adapter.weights)
    found = {name: [one.weights[name] for one in adapters if name in one.weights] for name in names}
    return Adapter(
        {
            name: LowRank(
                torch.cat([one.rank_by_columns for one in parts]),
                torch.cat([one.rows_by_rank for one in parts], dim=1),
            )
            for name, parts in found.items()
        }
    )
