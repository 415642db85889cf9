"""What paging did, in numbers: pages found and read, bytes, seconds waited. Owns the sums alone."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Self

from ernie_local.checkpoint.names import BANKS, Bank


@dataclass(slots=True)
class BankStats:
    """Of one bank, in decode and in prompts apart; a page counts once for each layer and forward."""

    decode_hits: int = 0
    decode_misses: int = 0
    prompt_hits: int = 0
    prompt_misses: int = 0
    bytes_read: int = 0

    @property
    def decode_hit_rate(self) -> float | None:
        """Share of pages that a decoded token found in memory; None where none was decoded."""
        uses = self.decode_hits + self.decode_misses
        return self.decode_hits / uses if uses else None


@dataclass(slots=True)
class PagingStats:
    """Sums since the model was loaded."""

    decoded_tokens: int = 0
    decode_bytes_read: int = 0
    decode_wait_seconds: float = 0.0
    prompt_tokens: int = 0
    prompt_wait_seconds: float = 0.0
    unused_pages_read: int = 0  # ahead of a layer that then did not want them
    banks: dict[Bank, BankStats] = field(default_factory=lambda: {bank: BankStats() for bank in BANKS})

    def copy(self) -> PagingStats:
        """As they are now."""
        sums = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "banks"}
        return PagingStats(**sums, banks={bank: _copy(one) for bank, one in self.banks.items()})

    def since(self, before: Self) -> PagingStats:
        """What came after `before`, an earlier copy."""
        later = self.copy()
        for part in fields(self):
            if part.name != "banks":
                setattr(later, part.name, getattr(self, part.name) - getattr(before, part.name))
        for bank, one in later.banks.items():
            for part in fields(one):
                value = getattr(one, part.name) - getattr(before.banks[bank], part.name)
                setattr(one, part.name, value)
        return later


def _copy(one: BankStats) -> BankStats:
    return BankStats(**{part.name: getattr(one, part.name) for part in fields(one)})
