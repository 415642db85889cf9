"""A small fast memory of pages over a larger slow one: what comes up, and what is computed below.

Pure Python over ids, as page_traffic.py, whose two orders this joins: the upper one reads by copying from the
lower one, which reads from disk. Who copies is a PageReader that finds both pages in their slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ernie_local.config import Bank
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.options import MissRule
from ernie_local.experts.traffic import PageGroup, PageReader, PageTraffic

# Pages of a layer that come up because they have grown hot, while no token waits for them.
_MOST_PROMOTED = 1


class LendingReader:
    """The upper memory's PageReader: has the lower one hold each page until it is copied."""

    def __init__(self, lower: PageTraffic, copier: PageReader) -> None:
        """copier: its `start` is called when the page is in its slot below, or on its way there."""
        self._lower = lower
        self._copier = copier
        self._lent: dict[ExpertKey, None] = {}  # in the order in which they were started
        self._copied: set[ExpertKey] = set()  # and not yet asked for

    def start(self, key: ExpertKey) -> None:
        """See PageReader.start."""
        while not self._lower.lend(key):
            # Every slot below is taken by pages that are being copied; the first of them is done first.
            assert self._lent, "there are slots for the experts of a token"
            self._finish([next(iter(self._lent))])
        self._lent[key] = None
        self._copier.start(key)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """See PageReader.wait."""
        self._finish([key for key in keys if key not in self._copied])
        self._copied.difference_update(keys)

    def abandon(self) -> None:
        """See PageReader.abandon. Nothing is on its way below either, and nothing held there."""
        self._copier.abandon()
        self._lent.clear()
        self._copied.clear()
        self._lower.give_up()

    def _finish(self, keys: Sequence[ExpertKey]) -> None:
        self._copier.wait(keys)
        for key in keys:
            del self._lent[key]
            self._lower.take_back(key)
            self._copied.add(key)


class TwoLevels:
    """Joins the traffic of both memories. One forward at a time."""

    def __init__(self, upper: PageTraffic, lower: PageTraffic, rule: MissRule) -> None:
        """upper: its reader is a LendingReader over `lower`."""
        self.upper = upper
        self.lower = lower
        self.rule = rule

    def begin(self, tokens: Mapping[Bank, int]) -> bool:
        """See PageTraffic.begin."""
        self.upper.begin(tokens)
        return self.lower.begin(tokens)

    def decode(self, bank: Bank, chosen: Sequence[ExpertKey]) -> Iterator[PageGroup]:
        """See PageTraffic.decode; pages of level 1 are computed below."""
        there, missing = self.upper.find(bank, chosen)
        if not missing:
            yield PageGroup(there, is_last=True)
            return
        # The hottest come up: they are the likeliest to be wanted again.
        level = self.upper.cache.heat.level
        by_heat = sorted(missing, key=lambda key: (-level(key), key))
        num_fetched = self.rule.num_to_copy(len(missing))
        fetched, left = by_heat[:num_fetched], by_heat[num_fetched:]
        if fetched:
            self.lower.count(bank, fetched)
        self.upper.fetch(fetched)
        below, read = self.lower.find(bank, left) if left else ([], [])
        self.lower.fetch(read)
        yield PageGroup(there, is_last=False)
        if below:
            yield PageGroup(below, is_last=not (fetched or read), level=1)
        if fetched:
            self.upper.receive(fetched)
            yield PageGroup(fetched, is_last=not read)
        if read:
            self.lower.receive(read)
            yield PageGroup(read, is_last=True, level=1)
        self.upper.settle(there, fetched)
        if read:
            self.lower.settle(below, read)
        # What came from disk just now may be a page that is never asked for again.
        self.upper.promote(below, _MOST_PROMOTED)

    def stream(
        self, layer_id: int, bank: Bank, chosen: Sequence[ExpertKey], num_tokens: int
    ) -> Iterator[PageGroup]:
        """See PageTraffic.stream."""
        self.lower.note_prompt(chosen, num_tokens)
        return self.upper.stream(layer_id, bank, chosen, num_tokens)

    def rest(self) -> None:
        """See PageTraffic.rest; of the upper memory, for whose pages the lower one holds none then."""
        self.upper.rest()

    def give_up(self) -> None:
        """See PageTraffic.give_up."""
        self.upper.give_up()
        self.lower.give_up()
