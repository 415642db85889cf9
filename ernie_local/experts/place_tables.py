"""Where the pages of each layer's experts begin now, as the operators want it: a table for each bank.

Follows a cache from page to page, so that nobody has to gather the places of a layer anew for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from ernie_local.config import Bank
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.page_memory import UNIT_BYTES
from ernie_local.kernels.checks import ABSENT_SLOT

_Table = tuple[int, Bank, bool]


class PlaceTables:
    """The units of a memory at which pages begin, ABSENT_SLOT for experts without one."""

    def __init__(self, experts: Iterable[ExpertKey], send: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """experts: all that have pages. send: Device.send of who computes from them."""
        sizes: dict[_Table, int] = {}
        for key in experts:
            table = _table(key)
            sizes[table] = max(sizes.get(table, 0), key.expert_id + 1)
        # Numbers are set one by one, which numpy does at a tenth of torch's price; both see one memory.
        self._numbers = {table: np.full(size, ABSENT_SLOT, dtype=np.int64) for table, size in sizes.items()}
        self._tables = {table: torch.from_numpy(numbers) for table, numbers in self._numbers.items()}
        self._send = send
        self._sent: dict[_Table, torch.Tensor] = {}  # those that have not changed since

    def move(self, key: ExpertKey, offset: int | None) -> None:
        """The page can be used at this byte from now on; None: not any more."""
        place = ABSENT_SLOT if offset is None else offset // UNIT_BYTES
        table = _table(key)
        self._numbers[table][key.expert_id] = place
        self._sent.pop(table, None)

    def all(self, layer_id: int, bank: Bank) -> torch.Tensor:
        """(experts,) int64, of every page but small ones; changes with the next page that comes or goes."""
        table = (layer_id, bank, False)
        if table not in self._sent:
            self._sent[table] = self._send(self._tables[table])
        return self._sent[table]

    def some(self, layer_id: int, bank: Bank, keys: Iterable[ExpertKey]) -> torch.Tensor:
        """(experts,) int64, of these pages alone, of which each is another expert's."""
        table = np.full_like(self._numbers[layer_id, bank, False], ABSENT_SLOT)
        for key in keys:
            table[key.expert_id] = self._numbers[_table(key)][key.expert_id]
        return self._send(torch.from_numpy(table))


def _table(key: ExpertKey) -> _Table:
    return key.layer_id, key.bank, key.is_small
