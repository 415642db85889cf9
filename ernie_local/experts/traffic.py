"""Decides when each page read starts and when pages are evicted.

Pure Python over ids, the same for experts that compute and for a trace that is replayed. Nothing here depends
on how long a read takes, so a replay equals the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from ernie_local.config import Bank, BankKey
from ernie_local.experts.cache import PageCache
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.options import BankStats, PagingStats
from ernie_local.experts.plan import PagingPlan

# Pages computed together in a prompt: each call quantizes its tokens again, and waits for its last page.
_PAGES_A_CALL = 8
# From this many tokens on, a layer is assumed to want all of its experts: 16 tokens of six experts each want
# 51 of 64.
_TOKENS_TO_PREFETCH = 16


class PageReader(Protocol):
    """Brings pages to the slots that the cache has reserved for them."""

    def start(self, key: ExpertKey) -> None:
        """Begin to read a page; return at once."""
        ...

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """Return when all of these pages, which were started, have been read."""
        ...

    def abort(self) -> None:
        """Return when no page is in flight any more. Those that were are not wanted."""
        ...


class PageGroup(NamedTuple):
    """Resident pages to compute with before the next group is asked for.

    level: 0, or 1 for the slower one of two memories. is_last: of a layer.
    """

    keys: list[ExpertKey]
    is_last: bool
    level: int = 0


class PageTraffic:
    """Pages of one model through one cache. One forward at a time."""

    def __init__(
        self,
        cache: PageCache,
        plan: PagingPlan,
        reader: PageReader,
        stats: PagingStats | None = None,
    ) -> None:
        """cache: built by `plan`. stats: where to count."""
        self.cache = cache
        self.stats = PagingStats() if stats is None else stats
        self.keys: dict[BankKey, list[ExpertKey]] = {}
        for key in sorted(plan.page_bytes):
            if not key.is_small:
                self.keys.setdefault((key.layer_id, key.bank), []).append(key)
        self.stats.banks.update({bank: BankStats() for _, bank in self.keys})
        self._plan = plan
        self._reader = reader
        self._window = plan.prefetch_window(cache)
        self._pages_a_call = min(_PAGES_A_CALL, plan.top_k)
        self._layer_ids = sorted({layer_id for layer_id, _ in self.keys})
        self._in_flight = cache.in_flight
        # Of this forward: tokens of each bank, and the calls in order.
        self._tokens: Mapping[Bank, int] = {}
        self._calls: list[BankKey] = []
        self._most_pages: dict[Bank, int] = {}
        self._is_decode = False

    def begin(self, tokens: Mapping[Bank, int], num_sequences: int = 1) -> bool:
        """Begin a forward. Gives back whether it is decode, of one token a sequence, and not a prompt.

        tokens: of each bank that has any, text first; every layer will ask for these banks.
        """
        self.drain()
        self._tokens = tokens
        self._calls = [(layer_id, bank) for layer_id in self._layer_ids for bank in tokens]
        num_tokens = sum(tokens.values())
        self.cache.advance()
        self._is_decode = num_tokens == num_sequences
        if self._is_decode:
            self.stats.decoded_tokens += num_tokens
        else:
            self.stats.prompt_tokens += num_tokens
            self._most_pages = self._plan.prompt_shares(self.cache)
        return self._is_decode

    def decode(self, bank: Bank, chosen: Sequence[ExpertKey]) -> Iterator[PageGroup]:
        """Serve tokens that chose these pages of a layer: resident ones first, even if there are none.

        Then the others, a few at a time, while more are read. Several tokens may choose more pages than there
        are slots: those that have been computed go.
        """
        present, missing = self.find(bank, chosen)
        if not missing:
            yield PageGroup(present, is_last=True)
            return
        num_started = self._start_urgently(missing)
        yield PageGroup(present, is_last=False)
        self.cache.unpin(present)
        while missing:
            num_started += self._start_urgently(missing[num_started:])
            group = missing[: min(num_started, self._pages_a_call)]
            assert group, "there are slots for the experts of a token"
            self.receive(group)
            missing, num_started = missing[len(group) :], num_started - len(group)
            num_started += self._start_urgently(missing[num_started:])
            yield PageGroup(group, is_last=not missing)
            self._admit(group)

    def _start_urgently(self, keys: Sequence[ExpertKey]) -> int:
        """Begin to read pages that tokens wait for, as long as there are slots; how many."""
        return next(
            (index for index, key in enumerate(keys) if not self._start(key, is_urgent=True)), len(keys)
        )

    def find(
        self, bank: Bank, chosen: Sequence[ExpertKey], *, pin: bool = True
    ) -> tuple[list[ExpertKey], list[ExpertKey]]:
        """Count tokens' choice of these pages of a layer. Gives back the resident ones and the missing.

        pin: whether the resident ones are pinned until `finish` if any is missing.
        """
        cache, stats = self.cache, self.stats.banks[bank]
        cache.heat.touch(chosen)
        pages = list(dict.fromkeys(chosen))
        if cache.has_all(pages):
            stats.decode_hits += len(pages)
            return pages, []
        present = [key for key in pages if key in cache]
        stats.decode_hits += len(present)
        missing = [key for key in pages if key not in cache]
        stats.decode_misses += len(missing)
        if pin:
            cache.pin(present)
        return present, missing

    def fetch(self, keys: Sequence[ExpertKey]) -> None:
        """Begin to read pages that a token waits for; `receive` follows."""
        for key in keys:
            self._start_surely(key, keys)

    def receive(self, keys: Sequence[ExpertKey]) -> None:
        """Wait for these pages. Then they are resident and pinned."""
        self._reader.wait(keys)
        for key in keys:
            self.cache.commit(key)

    def finish(self, pinned: Sequence[ExpertKey], received: Sequence[ExpertKey]) -> None:
        """The token has been computed with pages that `find` pinned and with those received."""
        self.cache.unpin(pinned)
        for key in received:
            self.cache.admit(key)

    def stream(
        self, layer_id: int, bank: Bank, chosen: Sequence[ExpertKey], num_tokens: int
    ) -> Iterator[PageGroup]:
        """Serve a prompt whose tokens chose these pages of a layer, a few at a time, in the order of experts.

        chosen: of all tokens one after the other.
        """
        cache, stats = self.cache, self.stats.banks[bank]
        counts = Counter(chosen)
        pending = sorted(counts)
        self.note_prompt(chosen, num_tokens)
        hits = sum(key in cache for key in pending)
        stats.prompt_hits += hits
        stats.prompt_misses += len(pending) - hits
        stale = [key for key in self._in_flight if key not in counts]
        self.stats.unused_pages_read += len(stale)
        self._receive_unused(stale)
        while pending:
            group, pending = pending[: self._pages_a_call], pending[self._pages_a_call :]
            present = [key for key in group if key in cache]
            missing = [key for key in group if key not in cache]
            cache.pin(present)
            self._prefetch(missing, pending, (layer_id, bank))
            self.receive(missing)
            yield PageGroup(group, is_last=not pending)
            self._admit(missing)
            cache.unpin(present)

    def note_prompt(self, chosen: Sequence[ExpertKey], num_tokens: int) -> None:
        """Heat the pages of a layer that a prompt's tokens chose, all tokens' one after the other."""
        counts = Counter(chosen)
        for key in sorted(counts):
            self.cache.heat.touch_in_prompt(key, counts[key] / num_tokens)

    def promote(self, keys: Sequence[ExpertKey], most_pages: int) -> None:
        """Begin to read the pages among the first `most_pages` that are hotter than those they would evict.

        No token waits for them.
        """
        for key in keys[:most_pages]:
            if key not in self._in_flight and key not in self.cache and self.cache.would_admit(key):
                self._start(key)

    def pin_source(self, key: ExpertKey) -> bool:
        """Pin a page that a faster memory will copy, or begin to read it. False if no slot is free now.

        `unpin_source` follows, once the page has been read and copied.
        """
        is_resident = key in self.cache
        is_known = is_resident or key in self._in_flight
        if not is_known and not self._start(key, is_urgent=self._is_decode):
            return False
        if is_resident:
            self.cache.pin([key])
        if not self._is_decode:
            self.stats.banks[key.bank].prompt_hits += is_resident
            self.stats.banks[key.bank].prompt_misses += not is_resident
        return True

    def unpin_source(self, key: ExpertKey) -> None:
        """The page of `pin_source` has been copied."""
        if key in self._in_flight:
            self._receive_unused([key])
        else:
            self.cache.unpin([key])

    def drain(self) -> None:
        """Between forwards: wait for pages in flight. Then, even after an error, no page is pinned."""
        if self.cache.has_pins:  # a forward was interrupted
            self.abort()
        try:
            self._receive_unused(list(self._in_flight))
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Wait for every page in flight, for it would land in a slot, and forget it. Nothing stays pinned."""
        self._reader.abort()
        self.cache.abort()

    def _prefetch(self, missing: Sequence[ExpertKey], pending: Sequence[ExpertKey], call: BankKey) -> None:
        """Begin to read what is missing now, then, as far as the window reaches, what comes after it."""
        for key in missing:
            self._start_surely(key, missing)
        self._start_some(key for key in pending if key not in self.cache)
        following = self._calls[self._calls.index(call) + 1 :]
        if following and self._tokens[following[0][1]] >= _TOKENS_TO_PREFETCH:
            kept = [key for key in pending if key in self.cache]
            self.cache.pin(kept)
            self._start_some(key for key in self.keys[following[0]] if key not in self.cache)
            self.cache.unpin(kept)

    def _start_surely(self, key: ExpertKey, wanted: Sequence[ExpertKey]) -> None:
        """Begin to read one of the pages that are `wanted` now, unless it is in flight already."""
        while key not in self._in_flight:
            # Where all slots are taken, some are by pages that were begun earlier and are needed later.
            early = next((other for other in self._in_flight if other not in wanted), None)
            if not self._start(key, is_urgent=early is None):
                assert early is not None, "there are slots for the experts of a token"
                self._receive_unused([early])

    def _start_some(self, keys: Iterable[ExpertKey]) -> None:
        for key in keys:
            is_full = len(self._in_flight) >= self._window
            if is_full or (key not in self._in_flight and not self._start(key)):
                return

    def _start(self, key: ExpertKey, *, is_urgent: bool = False) -> bool:
        """Begin to read a page. False if it gets no slot."""
        if not self.cache.reserve(key, is_urgent=is_urgent):
            return False
        self._reader.start(key)
        num_bytes = self._plan.page_bytes[key]
        self.stats.banks[key.bank].bytes_read += num_bytes
        self.stats.decode_bytes_read += num_bytes * self._is_decode
        return True

    def _receive_unused(self, keys: Sequence[ExpertKey]) -> None:
        """Wait for pages that nothing computes with now. They stay where there is room."""
        self.receive(keys)
        self._admit(keys)

    def _admit(self, keys: Sequence[ExpertKey]) -> None:
        for key in keys:
            if self._is_decode:
                self.cache.admit(key)
            else:
                self.cache.admit_from_prompt(key, self._most_pages[key.bank])
