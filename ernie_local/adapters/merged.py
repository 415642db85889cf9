"""Adds adapters to the weights of a float checkpoint while they are read, as if a merged one were there.

A sum is rounded to the type that the weight is stored in, so what is made of it has the same bytes as when a
merged checkpoint had been written and read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ernie_local.adapters.low_rank import Adapter, join_adapters
from ernie_local.adapters.source import AdapterSource
from ernie_local.checkpoint.index import Accounts
from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint
from ernie_local.config import ModelConfig
from ernie_local.errors import ModelUnusable
from ernie_local.packing.formats import LARGEST_WEIGHT


class MergedCheckpoint(Checkpoint):
    """A float checkpoint to whose weights an adapter is added. `check` looks at the weights without it."""

    def __init__(self, accounts: Accounts, adapter: Adapter) -> None:
        super().__init__(accounts)
        self._added = adapter.weights

    def place(self, name: str) -> tuple[Path, int, int]:
        """As of any checkpoint, of a weight to which nothing is added: the sum lies in no file."""
        assert name not in self._added, name
        return super().place(name)

    def read(self, name: str, out: Tensor) -> None:
        """As of any checkpoint, the sum. Takes the weight in float32 besides `out`."""
        if name not in self._added:
            super().read(name, out)
            return
        values = torch.empty(self.shape(name))
        super().read(name, values)
        out.detach().copy_(self._sum(name, 0, values))

    def read_rows(self, name: str, first_row: int, out: Tensor) -> None:
        """As of any checkpoint, rows of the sum."""
        if name not in self._added:
            super().read_rows(name, first_row, out)
            return
        values = torch.empty(out.shape)
        super().read_rows(name, first_row, values)
        out.copy_(self._sum(name, first_row, values))

    def _sum(self, name: str, first_row: int, values: Tensor) -> Tensor:
        """`values`, rows of the weight in float32 from `first_row` on, with what is added to them."""
        added = self._added[name]
        rows = added.rows_by_rank[first_row : first_row + len(values)]
        values.addmm_(rows.float(), added.rank_by_columns.float())
        largest = float(values.abs().max())
        if not largest <= LARGEST_WEIGHT:
            raise ModelUnusable(
                f"{name} with adapters holds {largest:.6g}, the largest weight that is read is "
                f"{LARGEST_WEIGHT:.0f}",
                "what the adapters add is too large to compute with",
                "give the adapters smaller scales, as in DIR:0.5",
            )
        return values.to(self.dtype(name))


def read_adapters(sources: Sequence[AdapterSource], config: ModelConfig) -> Adapter | None:
    """The sum of adapters for the model of `config`; None without any. ModelUnusable for one that does not
    fit."""
    return join_adapters([one.read(config) for one in sources]) if sources else None


def open_merged(directory: Path, config: ModelConfig, adapter: Adapter | None) -> Checkpoint:
    """The float checkpoint in `directory`, with the adapter added to its weights. Errors are those of
    `open_checkpoint`."""
    checkpoint = open_checkpoint(directory, config)
    return checkpoint if adapter is None else MergedCheckpoint(checkpoint.accounts, adapter)
