"""The order in which pages come and go: what is begun to be read when, and when who stays is decided.

Pure Python over ids, the same for experts that compute and for a trace that is replayed; who really reads is
a PageReader. Owns the counters of pages and bytes. Nothing here depends on how long a read takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from ernie_local.checkpoint.names import Bank
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.page_cache import PageCache
from ernie_local.experts.paging_plan import PagingPlan
from ernie_local.experts.paging_stats import PagingStats

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


class PageTraffic:
    """Pages of one model through one cache. One forward at a time."""

    def __init__(
        self, cache: PageCache, plan: PagingPlan, page_bytes: Mapping[ExpertKey, int], reader: PageReader
    ) -> None:
        """cache: built by `plan`. page_bytes: of every page of the model."""
        self.cache = cache
        self.stats = PagingStats()
        self.keys: dict[tuple[int, Bank], list[ExpertKey]] = {}
        for key in sorted(page_bytes):
            self.keys.setdefault((key.layer_id, key.bank), []).append(key)
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

    def begin(self, tokens: Mapping[Bank, int]) -> bool:
        """A forward of so many tokens begins; whether it is decode, of one token, and not a prompt.

        tokens: of each bank that has any, text first; every layer will ask for these banks.
        """
        if self._coming or self.cache.is_busy:
            self.give_up()
        self._tokens = tokens
        self._calls = [(layer_id, bank) for layer_id in self._layer_ids for bank in tokens]
        num_tokens = sum(tokens.values())
        self.cache.advance()
        if num_tokens == 1:
            self.stats.decoded_tokens += 1
            return True
        self.stats.prompt_tokens += num_tokens
        self._most_pages = self._plan.prompt_shares(self.cache)
        return False

    def start_decode(
        self, bank: Bank, chosen: Sequence[ExpertKey]
    ) -> tuple[list[ExpertKey], list[ExpertKey]]:
        """A token chose these pages: those that are there, and the missing ones, which begin to be read.

        Where there are any of the second, the first are held until `end_decode`, which follows `receive`.
        """
        cache, stats = self.cache, self.stats.banks[bank]
        cache.heat.touch(chosen)
        present = [key for key in chosen if key in cache]
        stats.decode_hits += len(present)
        if len(present) == len(chosen):
            return present, []
        missing = [key for key in dict.fromkeys(chosen) if key not in cache]
        stats.decode_misses += len(missing)
        cache.use(present)
        for key in missing:
            has_slot = self._start(key, is_urgent=True)
            assert has_slot, "there are slots for the experts of a token"
        self.stats.decode_bytes_read += sum(self._page_bytes[key] for key in missing)
        return present, missing

    def end_decode(self, present: Sequence[ExpertKey], missing: Sequence[ExpertKey]) -> None:
        """What `start_decode` gave has been computed with."""
        self.cache.release(present)
        for key in missing:
            self.cache.settle(key)

    def stream(
        self, layer_id: int, bank: Bank, chosen: Sequence[ExpertKey], num_tokens: int
    ) -> Iterator[tuple[list[ExpertKey], bool]]:
        """A prompt's tokens chose these pages of a layer: gives them some at a time, in the order of experts.

        Each group lies where it is until the next one is asked for; with it comes whether it is the last.
        chosen: of all tokens one after the other.
        """
        cache, stats = self.cache, self.stats.banks[bank]
        counts = Counter(chosen)
        pending = sorted(counts)
        for key in pending:
            cache.heat.touch_in_prompt(key, counts[key] / num_tokens)
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
            yield group, not pending
            self._keep_some(missing)
            cache.release(present)

    def receive(self, keys: Sequence[ExpertKey]) -> None:
        """Wait for these pages; they are there and held."""
        self._reader.wait(keys)
        for key in keys:
            del self._coming[key]
            self.cache.arrived(key)

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
            while key not in self._coming:
                # Where all slots are taken, some are by pages that were begun earlier and are needed later.
                early = next((other for other in self._coming if other not in missing), None)
                if not self._start(key, is_urgent=early is None):
                    assert early is not None, "there are slots for the experts of a token"
                    self._receive_to_keep([early])
        self._start_some(key for key in pending if key not in self.cache)
        following = self._calls[self._calls.index(call) + 1 :]
        if following and self._tokens[following[0][1]] >= _TOKENS_TO_READ_AHEAD:
            kept = [key for key in pending if key in self.cache]
            self.cache.use(kept)
            self._start_some(key for key in self.keys[following[0]] if key not in self.cache)
            self.cache.release(kept)

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
        self.stats.banks[key.bank].bytes_read += self._page_bytes[key]
        return True

    def _receive_to_keep(self, keys: Sequence[ExpertKey]) -> None:
        """Wait for pages that nobody computes with now; they stay where there is room."""
        self.receive(keys)
        self._keep_some(keys)

    def _keep_some(self, keys: Sequence[ExpertKey]) -> None:
        for key in keys:
            self.cache.settle_in_layer(key, self._most_pages[key.bank])
