"""Opens the adapters that a model is loaded with: reads them, adds them up, and says what they take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ernie_local.adapters.low_rank import Adapter, join_adapters
from ernie_local.adapters.source import AdapterSource
from ernie_local.adapters.tables import AdapterTables
from ernie_local.config import ModelConfig
from ernie_local.planner.weight_bytes import adapter_bytes
from ernie_local.reuse.identity import adapter_digest
from ernie_local.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class OpenedAdapters:
    """adapter: the sum of all; tables: where it acts, None without any. num_bytes: of these in memory.

    notes: a line for each, for people.
    """

    adapter: Adapter
    tables: AdapterTables | None
    num_bytes: int
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, given: Sequence[str | os.PathLike[str] | Adapter], config: ModelConfig, dtype: torch.dtype
    ) -> OpenedAdapters:
        """Of what `LoadOptions.lora` names, which may be nothing. dtype: of the computation.

        ModelUnusable for what is no adapter of this model, DoesNotFit for one that only a checkpoint can
        have, UsageError for a scale that is no number.
        """
        if not given:
            return cls(Adapter({}), None, 0, ())
        sources = [one if isinstance(one, Adapter) else AdapterSource.parse(one) for one in given]
        opened = [one if isinstance(one, Adapter) else one.read(config) for one in sources]
        adapter = join_adapters(opened)
        tables = AdapterTables.of(adapter, config)
        is_packed = config.quantization is not None

        def size(one: AdapterTables) -> int:
            return adapter_bytes(one.num_numbers, dtype.itemsize, is_packed=is_packed)

        notes = tuple(
            _note(source, one, size(AdapterTables.of(one, config)))
            for source, one in zip(sources, opened, strict=True)
        )
        return cls(adapter, tables, size(tables), notes)

    def digest(self) -> str:
        """What tells results with these adapters from others."""
        return adapter_digest(self.adapter)


def _note(source: Adapter | AdapterSource, adapter: Adapter, num_bytes: int) -> str:
    name = "an adapter" if isinstance(source, Adapter) else source.describe()
    ranks = sorted({one.rank for one in adapter.weights.values()})
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    size = format_bytes(num_bytes)
    return f"{name}: added to {len(adapter.weights):,} weights, of rank {rank}, {size} in memory"
