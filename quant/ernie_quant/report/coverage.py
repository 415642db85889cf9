"""How well calibration tokens cover the experts: per bank, per layer, in numbers and as a table.

Knows token counts only. An expert with few tokens is quantized mostly from its bank's second moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ernie_local.config import Bank
from ernie_quant.expert import ExpertReport

_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_COLUMNS = "{:<8}{:>6}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}"
_HEADER = ("bank", "layer", "experts", "tokens", "none", "scarce", "least", "10 %", "median", "90 %", "most")


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of one bank in one layer, or in all of them where `layer` is None.

    tokens: of the bank, each of which visits several experts. unreached: experts that no token visits.
    scarce: experts with fewer visits than a matrix has columns, those that none visits included.
    quantiles: least, 10 %, median, 90 % and most visits of an expert.
    """

    bank: Bank
    layer: int | None
    num_experts: int
    tokens: int
    unreached: int
    scarce: int
    quantiles: tuple[float, ...]


def measure_coverage(
    reports: Mapping[tuple[int, Bank, int], ExpertReport], columns: int, experts_per_token: int
) -> list[Coverage]:
    """For each bank all layers together, then each one; empty where nothing was calibrated."""
    rows: list[Coverage] = []
    for bank in dict.fromkeys(bank for _, bank, _ in reports):
        visits: dict[int, list[int]] = {}
        for (layer, own_bank, _), report in reports.items():
            if own_bank == bank:
                visits.setdefault(layer, []).append(report.tokens)
        # The same tokens run through every layer.
        tokens = max(map(sum, visits.values())) // experts_per_token
        everywhere = [count for counts in visits.values() for count in counts]
        by_layer: dict[int | None, list[int]] = {None: everywhere, **dict(sorted(visits.items()))}
        rows += [_row(bank, layer, counts, tokens, columns) for layer, counts in by_layer.items()]
    return rows


def _row(bank: Bank, layer: int | None, counts: list[int], tokens: int, columns: int) -> Coverage:
    return Coverage(
        bank=bank,
        layer=layer,
        num_experts=len(counts),
        tokens=tokens,
        unreached=sum(count == 0 for count in counts),
        scarce=sum(count < columns for count in counts),
        quantiles=tuple(float(value) for value in np.quantile(counts, _QUANTILES)),
    )


def cells(row: Coverage) -> tuple[str, ...]:
    """The row as texts, in the order of `header`."""
    layer = "all" if row.layer is None else str(row.layer)
    counts = (row.num_experts, row.tokens, row.unreached, row.scarce, *row.quantiles)
    return (row.bank, layer, *(f"{count:,.0f}" for count in counts))


def header() -> tuple[str, ...]:
    """What the columns of the table are."""
    return _HEADER


def table_lines(rows: Sequence[Coverage]) -> Iterator[str]:
    """For a terminal; nothing for no rows."""
    if rows:
        yield _COLUMNS.format(*_HEADER)
    for row in rows:
        yield _COLUMNS.format(*cells(row))
