"""Declares what a caller may choose about paging, and what paging counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from ernie_local.config import Bank


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
    """Sums since the model was loaded.

    GPU: of the faster memory above, where there is one: its bytes read are copied from the other memory,
    whose pages are those that it lacked.
    """

    decoded_tokens: int = 0
    decode_bytes_read: int = 0
    decode_wait_seconds: float = 0.0
    prompt_tokens: int = 0
    prompt_wait_seconds: float = 0.0
    unused_pages_read: int = 0  # ahead of a prompt's layer that then did not want them
    foreseen_pages: int = 0  # begun before a token's next layer chose, and those of them that it did
    foreseen_wanted: int = 0
    small_pages_used: int = 0  # in place of a decoded token's missing pages
    banks: dict[Bank, BankStats] = field(default_factory=dict)
    gpu: PagingStats | None = None

    def copy(self) -> PagingStats:
        """As they are now."""
        sums = {name: getattr(self, name) for name in _SUMS}
        banks = {bank: _copy(one) for bank, one in self.banks.items()}
        return PagingStats(**sums, banks=banks, gpu=None if self.gpu is None else self.gpu.copy())

    def since(self, before: PagingStats) -> PagingStats:
        """What came after `before`, an earlier copy."""
        later = self.copy()
        for name in _SUMS:
            setattr(later, name, getattr(self, name) - getattr(before, name))
        for bank, one in later.banks.items():
            for part in fields(one):
                value = getattr(one, part.name) - getattr(before.banks[bank], part.name)
                setattr(one, part.name, value)
        if later.gpu is not None and before.gpu is not None:
            later.gpu = later.gpu.since(before.gpu)
        return later


_SUMS = [part.name for part in fields(PagingStats) if part.name not in ("banks", "gpu")]


def _copy(one: BankStats) -> BankStats:
    return BankStats(**{part.name: getattr(one, part.name) for part in fields(one)})


@dataclass(frozen=True, slots=True)
class MissRule:
    """What happens to a token's missing pages of a layer, for people, and how many of them are copied.

    copied_share: of them, rounded down. Copies and the processor work at the same time.
    """

    description: str
    copied_share: float

    @property
    def computes(self) -> bool:
        """Whether the processor may compute some."""
        return self.copied_share < 1

    def num_to_copy(self, num_missing: int) -> int:
        """Of so many missing pages."""
        return int(num_missing * self.copied_share)


FETCH = MissRule("what it lacks is copied to it", 1.0)
COMPUTE = MissRule("what it lacks is computed by the processor", 0.0)
SPLIT = MissRule("half of what it lacks is copied to it, the rest computed by the processor", 0.5)
MISS_RULES: Mapping[str, MissRule] = {"fetch": FETCH, "compute": COMPUTE, "split": SPLIT}


@dataclass(frozen=True, slots=True)
class PagingOptions:
    """miss_rule: for two memories, which pages that the upper one lacks are copied to it.

    small_below: a decoded token's experts of less router weight are served by their small pages where their
    others are not in memory; None never does. It changes what the model computes. looks_ahead: begin to read
    what the next layer's router would choose now, before it does.
    """

    miss_rule: MissRule = FETCH
    small_below: float | None = None
    looks_ahead: bool = False
