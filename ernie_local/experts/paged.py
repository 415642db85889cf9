"""Routed experts of which only some are in memory: the others are read when tokens ask for them.

Owns the order of reading and computing. A decoded token's experts that are there are computed while the
missing ones are read; a prompt's layers pass as one stream, a window of pages ahead of the computing. Who
stays is page_cache.py's, how a page is read page_store.py's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from ernie_local.checkpoint.names import Bank
from ernie_local.errors import DoesNotFit
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.page_cache import PageCache
from ernie_local.experts.page_math import PageMath
from ernie_local.experts.page_memory import UNIT_BYTES, PageMemory, trim_heap
from ernie_local.experts.page_store import PageStore
from ernie_local.experts.paging_plan import PagingPlan
from ernie_local.experts.paging_stats import PagingStats
from ernie_local.kernels.checks import ABSENT_SLOT
from ernie_local.model.moe import TokenRows
from ernie_local.sizes import format_bytes

# Reads under way at a time: one keeps a solid-state disk busy at pages of megabytes, a few hide its pauses.
_READERS = 4
# Pages computed together in a prompt: each call quantizes its tokens anew, and waits for its last page.
_PAGES_A_CALL = 8
# From so many tokens on a layer is taken to want all of its experts: of 64, six to a token, they want 51.
_TOKENS_TO_READ_AHEAD = 16


@dataclass(frozen=True, slots=True)
class _Call:
    """What one layer asks of a bank. expert_ids: (tokens, top_k); chosen: the same, row after row."""

    layer_id: int
    bank: Bank
    expert_ids: torch.Tensor
    chosen: list[ExpertKey]


class PagedExperts:
    """An ExpertProvider over a cache of pages. One forward at a time."""

    def __init__(
        self,
        store: PageStore,
        cache: PageCache,
        memory: PageMemory,
        math: dict[Bank, PageMath],
        plan: PagingPlan,
    ) -> None:
        """memory: what `cache`, built by `plan`, gives out."""
        self.store = store
        self.cache = cache
        self.memory = memory
        self.stats = PagingStats()
        self.takes_shared_page = all(one.takes_shared_page for one in math.values())
        self._math = math
        self._plan = plan
        self._window = plan.ahead(cache)
        self._pages_a_call = min(_PAGES_A_CALL, plan.top_k)
        self._keys: dict[tuple[int, Bank], list[ExpertKey]] = {}
        for key in sorted(store.experts):
            self._keys.setdefault((key.layer_id, key.bank), []).append(key)
        self._layer_ids = sorted({layer_id for layer_id, _ in self._keys})
        self._page_bytes = {key: store.page_bytes(key) for key in store.experts}
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="ernie-page")
        self._readings: dict[ExpertKey, Future[None]] = {}  # pages on their way
        # Of this forward: tokens of each bank, and the calls in order.
        self._is_decode = False
        self._tokens: dict[Bank, int] = {}
        self._calls: list[tuple[int, Bank]] = []
        self._most_pages: dict[Bank, int] = {}
        self._needed: WeakKeyDictionary[object, int] = WeakKeyDictionary()  # bytes that others have

    def begin(self, rows: TokenRows) -> None:
        """A forward begins; every layer will ask for the banks that have rows."""
        self._give_up_readings()
        by_bank: dict[Bank, torch.Tensor | None] = {"text": rows.text, "vision": rows.vision}
        self._tokens = {bank: len(indices) for bank, indices in by_bank.items() if indices is not None}
        self._calls = [(layer_id, bank) for layer_id in self._layer_ids for bank in self._tokens]
        self.cache.heat.advance(rows.num_tokens)
        self._is_decode = rows.num_tokens == 1
        if self._is_decode:
            self.stats.decoded_tokens += 1
        else:
            self.stats.prompt_tokens += rows.num_tokens
            self._most_pages = self._plan.prompt_shares(self.cache)

    def make_room(self, owner: object, num_bytes: int) -> None:
        """See ExpertProvider.make_room."""
        self._needed[owner] = num_bytes
        needed = sum(self._needed.values())
        num_frames = (self.memory.bytes.nbytes - needed) // self._plan.frame_bytes
        if num_frames < self._plan.least_frames:
            self._needed[owner] = 0
            raise self._no_room(needed)
        if num_bytes == 0:
            trim_heap()
        self._use_frames(num_frames)

    def compute(
        self,
        layer_id: int,
        bank: Bank,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        shared_page: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See ExpertProvider.compute. ModelUnusable for a page that cannot be read, with nothing lost."""
        keys = self._keys[layer_id, bank]
        chosen = [keys[expert_id] for expert_id in expert_ids.flatten().tolist()]
        call = _Call(layer_id, bank, expert_ids, chosen)
        compute = self._decode if self._is_decode else self._stream
        try:
            return compute(call, hidden, expert_weights, shared_page)
        except BaseException:
            self._give_up_readings()
            raise

    def close(self) -> None:
        """Reading is over: end the threads, close the files."""
        self._give_up_readings()
        self._readers.shutdown()
        self.store.close()

    def _decode(
        self, call: _Call, hidden: torch.Tensor, weights: torch.Tensor, shared_page: torch.Tensor | None
    ) -> torch.Tensor:
        cache, chosen, stats = self.cache, call.chosen, self.stats.banks[call.bank]
        for key in chosen:
            cache.heat.touch(key)
        present = [key for key in chosen if key in cache]
        stats.decode_hits += len(present)
        if len(present) == len(chosen):
            output = torch.zeros_like(hidden, dtype=torch.float32)
            self._add(output, call, hidden, set(chosen), weights, shared_page)
            return output.to(hidden.dtype)
        missing = [key for key in dict.fromkeys(chosen) if key not in cache]
        stats.decode_misses += len(missing)
        cache.use(present)
        try:
            for key in missing:
                has_slot = self._start(key)
                assert has_slot, "there are slots for the experts of a token"
            self.stats.decode_bytes_read += sum(self._page_bytes[key] for key in missing)
            # A row for each choice: what came first may be added last, so that the
            # sum is the same to the bit wherever the pages were.
            each = _Call(call.layer_id, call.bank, call.expert_ids.view(-1, 1), chosen)
            rows, factors = hidden.expand(len(chosen), -1).contiguous(), weights.view(-1, 1)
            parts = torch.zeros_like(rows, dtype=torch.float32)  # (top_k, hidden_size)
            shared = torch.zeros_like(hidden, dtype=torch.float32)
            if present:
                self._add(parts, each, rows, set(present), factors, None)
            if shared_page is not None:
                self._add(shared, call, hidden, set(), weights, shared_page)
            before = time.perf_counter()
            self._receive(missing)
            self.stats.decode_wait_seconds += time.perf_counter() - before
        finally:
            cache.release(present)
        try:
            self._add(parts, each, rows, set(missing), factors, None)
        finally:
            for key in missing:
                cache.settle(key)
        output = torch.zeros_like(hidden, dtype=torch.float32)
        for _, part in sorted(zip(chosen, parts, strict=True), key=lambda choice: choice[0]):
            output += part
        output += shared
        return output.to(hidden.dtype)

    def _stream(
        self, call: _Call, hidden: torch.Tensor, weights: torch.Tensor, shared_page: torch.Tensor | None
    ) -> torch.Tensor:
        cache, stats = self.cache, self.stats.banks[call.bank]
        counts = Counter(call.chosen)
        pending = sorted(counts)  # computed in this order, which is that of experts in memory
        for key in pending:
            cache.heat.touch(key, counts[key], hidden.shape[0])
        hits = sum(key in cache for key in pending)
        stats.prompt_hits += hits
        stats.prompt_misses += len(pending) - hits
        stale = [key for key in self._readings if key not in counts]
        self.stats.unused_pages_read += len(stale)
        self._receive_to_keep(stale)
        output = torch.zeros_like(hidden, dtype=torch.float32)
        while pending:
            group, pending = pending[: self._pages_a_call], pending[self._pages_a_call :]
            present = [key for key in group if key in cache]
            missing = [key for key in group if key not in cache]
            cache.use(present)
            try:
                self._read_ahead(missing, pending, call)
                before = time.perf_counter()
                self._receive(missing)
                self.stats.prompt_wait_seconds += time.perf_counter() - before
                try:
                    last_page = None if pending else shared_page
                    self._add(output, call, hidden, set(group), weights, last_page)
                finally:
                    self._keep_some(missing)
            finally:
                cache.release(present)
        return output.to(hidden.dtype)

    def _add(
        self,
        output: torch.Tensor,
        call: _Call,
        hidden: torch.Tensor,
        among: set[ExpertKey],
        weights: torch.Tensor,
        shared_page: torch.Tensor | None,
    ) -> None:
        """Add the experts of each token that are `among` these."""
        places = [ABSENT_SLOT] * len(self._keys[call.layer_id, call.bank])
        for key in among:
            places[key.expert_id] = self.cache.offset(key) // UNIT_BYTES
        self._math[call.bank].add(
            output, self.memory.units, hidden, call.expert_ids, weights, torch.tensor(places), shared_page
        )

    def _read_ahead(self, missing: list[ExpertKey], pending: list[ExpertKey], call: _Call) -> None:
        """Begin to read what is missing now, then, as far as the window reaches, what comes after it."""
        for key in missing:
            while key not in self._readings and not self._start(key):
                # All slots are taken by pages that were begun earlier and are needed later.
                self._receive_to_keep([next(other for other in self._readings if other not in missing)])
        self._start_some(key for key in pending if key not in self.cache)
        following = self._calls[self._calls.index((call.layer_id, call.bank)) + 1 :]
        if following and self._tokens[following[0][1]] >= _TOKENS_TO_READ_AHEAD:
            kept = [key for key in pending if key in self.cache]
            self.cache.use(kept)
            self._start_some(key for key in self._keys[following[0]] if key not in self.cache)
            self.cache.release(kept)

    def _start_some(self, keys: Iterable[ExpertKey]) -> None:
        for key in keys:
            if len(self._readings) >= self._window or (key not in self._readings and not self._start(key)):
                return

    def _start(self, key: ExpertKey) -> bool:
        """Begin to read a page; False where it has no slot."""
        if not self.cache.expect(key):
            return False
        num_bytes = self._page_bytes[key]
        start = self.cache.offset(key)
        into = self.memory.bytes[start : start + num_bytes]
        self._readings[key] = self._readers.submit(self.store.read, key, into)
        self.stats.banks[key.bank].bytes_read += num_bytes
        return True

    def _receive(self, keys: Sequence[ExpertKey]) -> None:
        """Wait for these pages; they are there and held."""
        for key in keys:
            self._readings[key].result()
        for key in keys:
            del self._readings[key]
            self.cache.arrived(key)

    def _receive_to_keep(self, keys: Sequence[ExpertKey]) -> None:
        """Wait for pages that nobody computes with now; they stay where there is room."""
        self._receive(keys)
        self._keep_some(keys)

    def _keep_some(self, keys: Sequence[ExpertKey]) -> None:
        for key in keys:
            self.cache.settle_in_layer(key, self._most_pages[key.bank])

    def _use_frames(self, num_frames: int) -> None:
        slots = self.cache.slots
        while slots.num_frames > num_frames:
            frame = self.cache.shrink()
            assert frame is not None, "between forwards no page is in use"
            self.memory.hand_back(frame * slots.frame_bytes, slots.frame_bytes)
        while slots.num_frames < num_frames and slots.restore() is not None:
            pass

    def _no_room(self, needed: int) -> DoesNotFit:
        least = self._plan.least_bytes
        return DoesNotFit(
            f"{format_bytes(needed)} are needed beside experts, which need {format_bytes(least)} themselves, "
            f"there are {format_bytes(self.memory.bytes.nbytes)} for both",
            "conversation, pictures and experts share one memory, limited when the model was loaded",
            "raise the limit (--ram), shorten the conversation, or give fewer or smaller pictures",
        )

    def _give_up_readings(self) -> None:
        """Wait for every page that is on its way, for it would land in a slot, and forget it."""
        wait(list(self._readings.values()))
        self._readings.clear()
        self.cache.let_go()
