"""Pages through a small fast memory above a larger slow one: which come up, and which are computed below.

Pure Python over ids. The upper memory reads by copying from the lower one, which reads from disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ernie_local.config import Bank
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.options import MissRule
from ernie_local.experts.traffic import PageGroup, PageReader, PageTraffic

# Pages of a layer that come up because they have grown hot, while no token waits for them.
_MOST_PROMOTED = 1


class PinningReader:
    """The upper memory's PageReader: pins each page below until it has been copied."""

    def __init__(self, lower: PageTraffic, copier: PageReader) -> None:
        """copier: started when a page has its slot below, where it is resident or in flight."""
        self._lower = lower
        self._copier = copier
        self._pinned: dict[ExpertKey, None] = {}  # in the order in which they were started
        self._copied: set[ExpertKey] = set()  # and not yet waited for by the upper memory

    def start(self, key: ExpertKey) -> None:
        """Pin the page below, waiting for earlier copies while no slot is free there, and begin its copy."""
        while not self._lower.pin_source(key):
            # Every slot below is taken by pages that are being copied; the first of them is done first.
            assert self._pinned, "there are slots for the experts of a token"
            self._finish([next(iter(self._pinned))])
        self._pinned[key] = None
        self._copier.start(key)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """Return when these pages have been copied; they are unpinned below."""
        self._finish([key for key in keys if key not in self._copied])
        self._copied.difference_update(keys)

    def abort(self) -> None:
        """Return when nothing is in flight in either memory, and nothing pinned below."""
        self._copier.abort()
        self._pinned.clear()
        self._copied.clear()
        self._lower.abort()

    def _finish(self, keys: Sequence[ExpertKey]) -> None:
        self._copier.wait(keys)
        for key in keys:
            del self._pinned[key]
            self._lower.unpin_source(key)
            self._copied.add(key)


class TwoLevels:
    """Joins the traffic of both memories, with PageTraffic's methods. One forward at a time."""

    def __init__(self, upper: PageTraffic, lower: PageTraffic, rule: MissRule) -> None:
        """upper: its reader is a PinningReader over `lower`. rule: may be changed between forwards."""
        self.upper = upper
        self.lower = lower
        self.rule = rule

    def begin(self, tokens: Mapping[Bank, int], num_sequences: int = 1) -> bool:
        """Begin a forward in both memories; see PageTraffic.begin."""
        self.upper.begin(tokens, num_sequences)
        return self.lower.begin(tokens, num_sequences)

    def decode(self, bank: Bank, chosen: Sequence[ExpertKey]) -> Iterator[PageGroup]:
        """Serve a token; see PageTraffic.decode. Pages of level 1 are computed below."""
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
            self.lower.find(bank, fetched, pin=False)
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
        self.upper.finish(there, fetched)
        if read:
            self.lower.finish(below, read)
        # What came from disk just now may be a page that is never asked for again.
        self.upper.promote(below, _MOST_PROMOTED)

    def stream(
        self, layer_id: int, bank: Bank, chosen: Sequence[ExpertKey], num_tokens: int
    ) -> Iterator[PageGroup]:
        """Serve a prompt; see PageTraffic.stream. All of it is computed above."""
        self.lower.note_prompt(chosen, num_tokens)
        return self.upper.stream(layer_id, bank, chosen, num_tokens)

    def abort(self) -> None:
        """Forget every page in flight in both memories, and pin none."""
        self.upper.abort()
        self.lower.abort()
