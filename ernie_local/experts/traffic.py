"""Decides when each page read starts and when pages are evicted.

Pure Python over ids, the same for experts that compute and for a trace that is replayed. Nothing here depends
on how long a read takes, so a replay equals the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from ernie_local.config import Bank
from ernie_local.experts.cache import PageCache
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.options import BankStats, PagingStats
from ernie_local.experts.plan import PagingPlan

# Pages computed together in a prompt: each call quantizes its tokens anew, and waits for its last page.
_PAGES_A_CALL = 8
# From so many tokens on a layer is taken to want all of its experts: of 64, six to a token, they want 51.
_TOKENS_TO_READ_AHEAD = 16


class PageReader(Protocol):
    """Brings pages to the places that the cache has for them."""

    def start(self, key: ExpertKey) -> None:
        """Begin to read a page; return at once."""
        ...

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """Return when all of these, which were started, are there."""
        ...

    def abandon(self) -> None:
        """Return when no page is on its way any more; those that were are not wanted."""
        ...


class PageGroup(NamedTuple):
    """Pages that are there, to compute with before the next group is asked for.

    level: 0, or 1 for the slower one of two memories. is_last: of a layer.
    """

    keys: list[ExpertKey]
    is_last: bool
    level: int = 0


class PageTraffic:
    """Pages of one model through one cache. One forward at a time."""

    def __init__(
        self, cache: PageCache, plan: PagingPlan, page_bytes: Mapping[ExpertKey, int], reader: PageReader
    ) -> None:
        """cache: built by `plan`. page_bytes: of every page of the model."""
        self.cache = cache
        self.keys: dict[tuple[int, Bank], list[ExpertKey]] = {}
        for key in sorted(page_bytes):
            if not key.is_small:
                self.keys.setdefault((key.layer_id, key.bank), []).append(key)
        self.stats = PagingStats(banks={bank: BankStats() for _, bank in self.keys})
        self._plan = plan
        self._page_bytes = page_bytes
        self._reader = reader
        self._window = plan.ahead(cache)
        self._pages_a_call = min(_PAGES_A_CALL, plan.top_k)
        self._layer_ids = sorted({layer_id for layer_id, _ in self.keys})
        self._coming: dict[ExpertKey, None] = {}  # on their way, in the order in which they were begun
        # Of this forward: tokens of each bank, and the calls in order.
        self._tokens: Mapping[Bank, int] = {}
        self._calls: list[tuple[int, Bank]] = []
        self._most_pages: dict[Bank, int] = {}
        self._is_decode = False
        self._foreseen: set[ExpertKey] = set()  # of this token, begun before they were wanted

    def begin(self, tokens: Mapping[Bank, int]) -> bool:
        """A forward of so many tokens begins; whether it is decode, of one token, and not a prompt.

        tokens: of each bank that has any, text first; every layer will ask for these banks.
        """
        self.rest()
        self._foreseen.clear()
        self._tokens = tokens
        self._calls = [(layer_id, bank) for layer_id in self._layer_ids for bank in tokens]
        num_tokens = sum(tokens.values())
        self.cache.advance()
        self._is_decode = num_tokens == 1
        if self._is_decode:
            self.stats.decoded_tokens += 1
        else:
            self.stats.prompt_tokens += num_tokens
            self._most_pages = self._plan.prompt_shares(self.cache)
        return self._is_decode

    def decode(self, bank: Bank, chosen: Sequence[ExpertKey]) -> Iterator[PageGroup]:
        """A token chose these pages of a layer: gives first those that are there, even if there are none."""
        present, missing = self.find(bank, chosen)
        if missing:
            self.fetch(missing)
            yield PageGroup(present, is_last=False)
            self.receive(missing)
            yield PageGroup(missing, is_last=True)
            self.settle(present, missing)
        else:
            yield PageGroup(present, is_last=True)

    def find(self, bank: Bank, chosen: Sequence[ExpertKey]) -> tuple[list[ExpertKey], list[ExpertKey]]:
        """A token chose these pages of a layer: those that are there, and those that are not.

        Where there are any of the second, the first are held until `settle`.
        """
        present, missing = self.count(bank, chosen)
        if missing:
            self.cache.use(present)
        return present, missing

    def count(self, bank: Bank, chosen: Sequence[ExpertKey]) -> tuple[list[ExpertKey], list[ExpertKey]]:
        """As `find`, but nothing is held."""
        cache, stats = self.cache, self.stats.banks[bank]
        cache.heat.touch(chosen)
        if cache.holds(chosen):
            stats.decode_hits += len(chosen)
            return [*chosen], []
        present = [key for key in chosen if key in cache]
        stats.decode_hits += len(present)
        missing = [key for key in dict.fromkeys(chosen) if key not in cache]
        stats.decode_misses += len(missing)
        return present, missing

    def fetch(self, keys: Sequence[ExpertKey]) -> None:
        """Begin to read pages that a token waits for, which `receive` follows."""
        for key in keys:
            self.stats.foreseen_wanted += key in self._foreseen
            self._start_surely(key, keys)

    def settle(self, held: Sequence[ExpertKey], received: Sequence[ExpertKey]) -> None:
        """Pages that `find` held have been computed with, and those that were received."""
        self.cache.release(held)
        for key in received:
            self.cache.settle(key)

    def stream(
        self, layer_id: int, bank: Bank, chosen: Sequence[ExpertKey], num_tokens: int
    ) -> Iterator[PageGroup]:
        """A prompt's tokens chose these pages of a layer: gives them some at a time, in the order of experts.

        chosen: of all tokens one after the other.
        """
        cache, stats = self.cache, self.stats.banks[bank]
        counts = Counter(chosen)
        pending = sorted(counts)
        self.note_prompt(chosen, num_tokens)
        hits = sum(key in cache for key in pending)
        stats.prompt_hits += hits
        stats.prompt_misses += len(pending) - hits
        stale = [key for key in self._coming if key not in counts]
        self.stats.unused_pages_read += len(stale)
        self._receive_to_keep(stale)
        while pending:
            group, pending = pending[: self._pages_a_call], pending[self._pages_a_call :]
            present = [key for key in group if key in cache]
            missing = [key for key in group if key not in cache]
            cache.use(present)
            self._read_ahead(missing, pending, (layer_id, bank))
            self.receive(missing)
            yield PageGroup(group, is_last=not pending)
            self._keep_some(missing)
            cache.release(present)

    def look_ahead(self, keys: Sequence[ExpertKey]) -> None:
        """Begin to read what is missing of pages that the next layer may choose. Nobody waits for them."""
        for key in keys:
            if key not in self._coming and key not in self.cache and self._start(key):
                self._foreseen.add(key)
                self.stats.foreseen_pages += 1

    def note_prompt(self, chosen: Sequence[ExpertKey], num_tokens: int) -> None:
        """A prompt's tokens chose these pages of a layer, all tokens' one after the other."""
        counts = Counter(chosen)
        for key in sorted(counts):
            self.cache.heat.touch_in_prompt(key, counts[key] / num_tokens)

    def promote(self, keys: Sequence[ExpertKey], most_pages: int) -> None:
        """Begin to read those of these pages that are hotter than what they would drive out, at most so many.

        Nobody waits for them.
        """
        for key in keys[:most_pages]:
            if key not in self._coming and key not in self.cache and self.cache.gains(key):
                self._start(key)

    def lend(self, key: ExpertKey) -> bool:
        """Hold a page for a faster memory to copy, or begin to read it; False where it has no slot now.

        `take_back` follows, after the page has been read where it was not there.
        """
        is_there = key in self.cache
        if not is_there and key not in self._coming and not self._start(key, is_urgent=self._is_decode):
            return False
        if is_there:
            self.cache.use([key])
        self.stats.foreseen_wanted += key in self._foreseen
        if not self._is_decode:
            self.stats.banks[key.bank].prompt_hits += is_there
            self.stats.banks[key.bank].prompt_misses += not is_there
        return True

    def take_back(self, key: ExpertKey) -> None:
        """The page that was lent has been copied."""
        if key in self._coming:
            self._receive_to_keep([key])
        else:
            self.cache.release([key])

    def receive(self, keys: Sequence[ExpertKey]) -> None:
        """Wait for these pages; they are there and held."""
        self._reader.wait(keys)
        for key in keys:
            del self._coming[key]
            self.cache.arrived(key)

    def rest(self) -> None:
        """Between forwards: wait for pages that are on their way. None is held, none comes any more."""
        if self.cache.is_in_use:  # a forward was interrupted
            self.give_up()
        self._receive_to_keep(list(self._coming))

    def give_up(self) -> None:
        """Wait for every page that is on its way, for it would land in a slot, and forget it."""
        self._reader.abandon()
        self._coming.clear()
        self.cache.let_go()

    def _read_ahead(
        self, missing: Sequence[ExpertKey], pending: Sequence[ExpertKey], call: tuple[int, Bank]
    ) -> None:
        """Begin to read what is missing now, then, as far as the window reaches, what comes after it."""
        for key in missing:
            self._start_surely(key, missing)
        self._start_some(key for key in pending if key not in self.cache)
        following = self._calls[self._calls.index(call) + 1 :]
        if following and self._tokens[following[0][1]] >= _TOKENS_TO_READ_AHEAD:
            kept = [key for key in pending if key in self.cache]
            self.cache.use(kept)
            self._start_some(key for key in self.keys[following[0]] if key not in self.cache)
            self.cache.release(kept)

    def _start_surely(self, key: ExpertKey, wanted: Sequence[ExpertKey]) -> None:
        """Begin to read one of the pages that are `wanted` now, unless it was begun already."""
        while key not in self._coming:
            # Where all slots are taken, some are by pages that were begun earlier and are needed later.
            early = next((other for other in self._coming if other not in wanted), None)
            if not self._start(key, is_urgent=early is None):
                assert early is not None, "there are slots for the experts of a token"
                self._receive_to_keep([early])

    def _start_some(self, keys: Iterable[ExpertKey]) -> None:
        for key in keys:
            if len(self._coming) >= self._window or (key not in self._coming and not self._start(key)):
                return

    def _start(self, key: ExpertKey, *, is_urgent: bool = False) -> bool:
        """Begin to read a page; False where it has no slot."""
        if not self.cache.expect(key, is_urgent=is_urgent):
            return False
        self._coming[key] = None
        self._reader.start(key)
        num_bytes = self._page_bytes[key]
        self.stats.banks[key.bank].bytes_read += num_bytes
        self.stats.decode_bytes_read += num_bytes * self._is_decode
        return True

    def _receive_to_keep(self, keys: Sequence[ExpertKey]) -> None:
        """Wait for pages that nobody computes with now; they stay where there is room."""
        self.receive(keys)
        self._keep_some(keys)

    def _keep_some(self, keys: Sequence[ExpertKey]) -> None:
        for key in keys:
            if self._is_decode:
                self.cache.settle(key)
            else:
                self.cache.settle_in_layer(key, self._most_pages[key.bank])
