"""Declares what a caller may choose about paging, and what paging counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from ernie_local.config import Bank


@dataclass(frozen=True, slots=True)
class MissRule:
    """What happens to the pages of a layer that a token wants and a GPU lacks.

    description: for people. copied_share: how many of them are copied to the GPU, rounded down; the processor
    computes the rest meanwhile. Which rule suits a machine is measured (machine/miss_rules.py).
    """

    description: str
    copied_share: float

    @property
    def computes(self) -> bool:
        """Whether the processor may compute some."""
        return self.copied_share < 1

    def num_to_copy(self, num_missing: int) -> int:
        """How many of the missing pages are copied."""
        return int(num_missing * self.copied_share)


FETCH = MissRule("missing experts are copied to it", 1.0)
COMPUTE = MissRule("missing experts are computed by the processor", 0.0)
SPLIT = MissRule("half of the missing experts are copied to it, the processor computes the rest", 0.5)
MISS_RULES: Mapping[str, MissRule] = {"fetch": FETCH, "compute": COMPUTE, "split": SPLIT}


@dataclass(frozen=True, slots=True)
class PagingOptions:
    """What can be chosen about paging besides the size of memories.

    miss_rule: on a GPU, what happens to pages that it lacks. small_below: experts of a decoded token with
    less router weight than this are computed from their small pages if their full pages are not in memory;
    None never does. It changes what the model computes.
    """

    miss_rule: MissRule = FETCH
    small_below: float | None = None


@dataclass(slots=True)
class BankStats:
    """Counts of one bank, in decode and in prompts; a page counts once for each layer and forward.

    Also where a forward decodes tokens of several sequences, each of which PagingStats.decoded_tokens counts.
    """

    decode_hits: int = 0
    decode_misses: int = 0
    prompt_hits: int = 0
    prompt_misses: int = 0
    bytes_read: int = 0

    @property
    def decode_hit_rate(self) -> float | None:
        """Share of a decoded token's pages that were resident; None before the first token."""
        uses = self.decode_hits + self.decode_misses
        return self.decode_hits / uses if uses else None


@dataclass(slots=True)
class PagingStats:
    """Sums since the model was loaded.

    gpu: of the faster memory above, if there is one. Its bytes read are copied from the other memory, which
    is asked for the pages that it lacks.
    """

    decoded_tokens: int = 0
    decode_bytes_read: int = 0
    decode_wait_seconds: float = 0.0
    prompt_tokens: int = 0
    prompt_wait_seconds: float = 0.0
    unused_pages_read: int = 0  # prefetched for a prompt's layer that then did not want them
    small_pages_used: int = 0  # in place of a decoded token's missing pages
    given_up_bytes: int = 0  # of a GPU, for good, as others took its memory
    kept_workspaces: int = (
        0  # of a GPU: prompts after which torch kept some of it, which pages lack in decode
    )
    banks: dict[Bank, BankStats] = field(default_factory=dict)
    gpu: PagingStats | None = None

    def copy(self) -> PagingStats:
        """The sums as they are now."""
        # Not deepcopy, which fails where an unread answer is closed by the end of the program.
        banks = {name: replace(bank) for name, bank in self.banks.items()}
        return replace(self, banks=banks, gpu=None if self.gpu is None else self.gpu.copy())

    def since(self, before: PagingStats) -> PagingStats:
        """What was added after `before`, an earlier copy."""
        later = self.copy()
        _subtract(later, before)
        for bank, one in later.banks.items():
            _subtract(one, before.banks[bank])
        if later.gpu is not None and before.gpu is not None:
            later.gpu = later.gpu.since(before.gpu)
        return later


def _subtract(later: PagingStats | BankStats, before: PagingStats | BankStats) -> None:
    for part in fields(later):
        value = getattr(later, part.name)
        if isinstance(value, int | float):
            setattr(later, part.name, value - getattr(before, part.name))
