"""Routed experts of which only some are in memory: the others are read when tokens ask for them.

Owns the reading, the computing and the seconds waited. A decoded token's experts that are there are computed
while the missing ones are read; a prompt's layers pass as one stream, a window of pages ahead of the
computing. Their order is page_traffic.py's, who stays page_cache.py's, how a page is read page_store.py's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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
from ernie_local.experts.page_traffic import PageTraffic
from ernie_local.experts.paging_plan import PagingPlan
from ernie_local.experts.paging_stats import PagingStats
from ernie_local.kernels.checks import ABSENT_SLOT
from ernie_local.model.moe import TokenRows
from ernie_local.sizes import format_bytes

# Reads under way at a time: one keeps a solid-state disk busy at pages of megabytes, a few hide its pauses.
_READERS = 4


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
        shared_bytes: int,
    ) -> None:
        """memory: what `cache`, built by `plan`, gives out; shared_bytes: what it and others have."""
        self.store = store
        self.cache = cache
        self.memory = memory
        self.takes_shared_page = all(one.takes_shared_page for one in math.values())
        self._math = math
        self._page_bytes = {key: store.page_bytes(key) for key in store.experts}
        self._traffic = PageTraffic(cache, plan, self._page_bytes, self)
        self._is_decode = False
        self._plan = plan
        self._shared_bytes = shared_bytes
        self._needed: WeakKeyDictionary[object, int] = WeakKeyDictionary()  # bytes that others have
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="ernie-page")
        self._readings: dict[ExpertKey, Future[None]] = {}  # pages on their way

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages, in memory or not."""
        return sum(self._page_bytes.values())

    @property
    def stats(self) -> PagingStats:
        """What was read and found since the model was loaded."""
        return self._traffic.stats

    def begin(self, rows: TokenRows) -> None:
        """A forward begins; every layer will ask for the banks that have rows."""
        by_bank: dict[Bank, torch.Tensor | None] = {"text": rows.text, "vision": rows.vision}
        tokens = {bank: len(indices) for bank, indices in by_bank.items() if indices is not None}
        self._is_decode = self._traffic.begin(tokens)

    def make_room(self, owner: object, num_bytes: int) -> None:
        """See ExpertProvider.make_room."""
        self._needed[owner] = num_bytes
        needed = sum(self._needed.values())
        num_frames = (self._shared_bytes - needed) // self._plan.frame_bytes
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
        keys = self._traffic.keys[layer_id, bank]
        chosen = [keys[expert_id] for expert_id in expert_ids.flatten().tolist()]
        call = _Call(layer_id, bank, expert_ids, chosen)
        compute = self._decode if self._is_decode else self._stream
        try:
            return compute(call, hidden, expert_weights, shared_page)
        except BaseException:
            self._traffic.give_up()
            raise

    def close(self) -> None:
        """Reading is over: end the threads, close the files."""
        self._traffic.give_up()
        self._readers.shutdown()
        self.store.close()

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
            f"there are {format_bytes(self._shared_bytes)} for both",
            "conversation, pictures and experts share one memory, limited when the model was loaded",
            "raise the limit (--ram), shorten the conversation, or give fewer or smaller pictures",
        )

    def start(self, key: ExpertKey) -> None:
        """See PageReader.start."""
        start = self.cache.offset(key)
        into = self.memory.bytes[start : start + self._page_bytes[key]]
        self._readings[key] = self._readers.submit(self.store.read, key, into)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """See PageReader.wait."""
        before = time.perf_counter()
        for key in keys:
            self._readings[key].result()
        for key in keys:
            del self._readings[key]
        seconds = time.perf_counter() - before
        if self._is_decode:
            self.stats.decode_wait_seconds += seconds
        else:
            self.stats.prompt_wait_seconds += seconds

    def abandon(self) -> None:
        """See PageReader.abandon."""
        wait(list(self._readings.values()))
        self._readings.clear()

    def _decode(
        self, call: _Call, hidden: torch.Tensor, weights: torch.Tensor, shared_page: torch.Tensor | None
    ) -> torch.Tensor:
        chosen = call.chosen
        present, missing = self._traffic.start_decode(call.bank, chosen)
        output = torch.zeros_like(hidden, dtype=torch.float32)
        if not missing:
            self._add(output, call, hidden, chosen, weights, shared_page)
            return output.to(hidden.dtype)
        # A row for each choice: what came first may be added last, so that the
        # sum is the same to the bit wherever the pages were.
        each = _Call(call.layer_id, call.bank, call.expert_ids.view(-1, 1), chosen)
        rows, factors = hidden.expand(len(chosen), -1).contiguous(), weights.view(-1, 1)
        parts = torch.zeros_like(rows, dtype=torch.float32)  # (top_k, hidden_size)
        shared = torch.zeros_like(hidden, dtype=torch.float32)
        if present:
            self._add(parts, each, rows, present, factors, None)
        if shared_page is not None:
            self._add(shared, call, hidden, (), weights, shared_page)
        self._traffic.receive(missing)
        self._add(parts, each, rows, missing, factors, None)
        self._traffic.end_decode(present, missing)
        for _, part in sorted(zip(chosen, parts, strict=True), key=lambda choice: choice[0]):
            output += part
        output += shared
        return output.to(hidden.dtype)

    def _stream(
        self, call: _Call, hidden: torch.Tensor, weights: torch.Tensor, shared_page: torch.Tensor | None
    ) -> torch.Tensor:
        output = torch.zeros_like(hidden, dtype=torch.float32)
        groups = self._traffic.stream(call.layer_id, call.bank, call.chosen, hidden.shape[0])
        for group, is_last in groups:
            self._add(output, call, hidden, group, weights, shared_page if is_last else None)
        return output.to(hidden.dtype)

    def _add(
        self,
        output: torch.Tensor,
        call: _Call,
        hidden: torch.Tensor,
        among: Sequence[ExpertKey],
        weights: torch.Tensor,
        shared_page: torch.Tensor | None,
    ) -> None:
        """Add the experts of each token that are `among` these."""
        places = [ABSENT_SLOT] * len(self._traffic.keys[call.layer_id, call.bank])
        for key in among:
            places[key.expert_id] = self.cache.offset(key) // UNIT_BYTES
        self._math[call.bank].add(
            output, self.memory.units, hidden, call.expert_ids, weights, torch.tensor(places), shared_page
        )
