"""Routed experts of which only some are in memory: the others are read when tokens ask for them.

Owns the computing, and who else needs of the memory. A decoded token's experts that are there are computed
while the missing ones are read; a prompt's layers pass as one stream, a window of pages ahead of the
computing. Their order is page_traffic.py's, who stays page_cache.py's, how a page is read page_store.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from weakref import WeakKeyDictionary

import torch

from ernie_local.checkpoint.names import Bank
from ernie_local.errors import DoesNotFit
from ernie_local.experts.disk_reader import DiskReader
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.miss_rule import MissRule
from ernie_local.experts.page_copier import PageCopier
from ernie_local.experts.page_level import PageLevel
from ernie_local.experts.page_math import RoutedTokens
from ernie_local.experts.page_memory import trim_heap
from ernie_local.experts.page_store import PageStore
from ernie_local.experts.page_traffic import PageTraffic
from ernie_local.experts.paging_options import PagingOptions
from ernie_local.experts.paging_plan import PagingPlan
from ernie_local.experts.paging_stats import PagingStats
from ernie_local.experts.two_levels import LendingReader, TwoLevels
from ernie_local.model.moe import TokenRows
from ernie_local.sizes import format_bytes

# Of (tokens, hidden_size) states the (tokens, top_k) experts, and their weights.
TextRouter = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class PagedExperts:
    """An ExpertProvider over one memory of pages, or two. One forward at a time."""

    def __init__(
        self,
        store: PageStore,
        level: PageLevel,
        plan: PagingPlan,
        shared_bytes: int,
        upper: PageLevel | None = None,
        options: PagingOptions | None = None,
    ) -> None:
        """level: filled from disk; upper: a faster one above it. Their caches were built by `plan`.

        shared_bytes: what the uppermost and others have.
        """
        self.store = store
        self.options = PagingOptions() if options is None else options
        self._routers: Mapping[int, TextRouter] = {}
        self.level = level
        self.top = level if upper is None else upper
        self.takes_shared_page = level.takes_shared_page
        self._page_bytes = {key: store.page_bytes(key) for key in store.experts}
        disk = DiskReader(store, level)
        self._below = PageTraffic(level.cache, plan, self._page_bytes, disk)
        self._traffic: PageTraffic | TwoLevels = self._below
        self._readers: list[tuple[PagingStats, DiskReader | PageCopier]] = [(self._below.stats, disk)]
        if upper is not None:
            copier = PageCopier(upper, level, disk, self._page_bytes)
            lending = LendingReader(self._below, copier)
            above = PageTraffic(upper.cache, plan, self._page_bytes, lending)
            self._traffic = TwoLevels(above, self._below, self.options.miss_rule)
            self._readers.append((above.stats, copier))
            self._below.stats.card = above.stats
        self._is_decode = False
        self._plan = plan
        self._shared_bytes = shared_bytes
        self._needed: WeakKeyDictionary[object, int] = WeakKeyDictionary()  # bytes that others have

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages but small ones, in memory or not."""
        return sum(size for key, size in self._page_bytes.items() if not key.is_small)

    @property
    def stats(self) -> PagingStats:
        """What was found in memory and read from disk since the model was loaded."""
        return self._below.stats

    @property
    def miss_rule(self) -> MissRule:
        """What happens to pages that the upper memory lacks, where there is one; may change at any time."""
        return self._traffic.rule if isinstance(self._traffic, TwoLevels) else self.options.miss_rule

    @miss_rule.setter
    def miss_rule(self, rule: MissRule) -> None:
        assert isinstance(self._traffic, TwoLevels), "there is one memory"
        self._traffic.rule = rule

    def look_ahead_by(self, routers: Mapping[int, TextRouter]) -> None:
        """From now on, ask the next layer's router of text what it would choose for a token as it is."""
        self._routers = routers

    def begin(self, rows: TokenRows) -> None:
        """A forward begins; every layer will ask for the banks that have rows."""
        by_bank: dict[Bank, torch.Tensor | None] = {"text": rows.text, "vision": rows.vision}
        tokens = {bank: len(indices) for bank, indices in by_bank.items() if indices is not None}
        self._is_decode = self._traffic.begin(tokens)

    def make_room(self, owner: object, num_bytes: int) -> None:
        """See ExpertProvider.make_room."""
        is_less = num_bytes < self._needed.get(owner, 0)
        self._needed[owner] = num_bytes
        needed = sum(self._needed.values())
        num_frames = (self._shared_bytes - needed) // self._plan.frame_bytes
        if num_frames < self._plan.least_frames:
            self._needed[owner] = 0
            raise self._no_room(needed)
        if is_less:
            trim_heap()
        self.top.use_frames(num_frames)

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
        keys = self._below.keys[layer_id, bank]
        chosen = [keys[expert_id] for expert_id in expert_ids.flatten().tolist()]
        tokens = RoutedTokens(layer_id, bank, hidden, expert_ids, expert_weights)
        compute = self._decode if self._is_decode else self._stream
        try:
            return compute(tokens, chosen, shared_page)
        except BaseException:
            self._traffic.give_up()
            raise
        finally:
            self._note_waits()

    def close(self) -> None:
        """Reading is over: end the threads, close the files."""
        self._traffic.give_up()
        for _, reader in self._readers:
            reader.close()

    def _no_room(self, needed: int) -> DoesNotFit:
        least = self._plan.least_bytes
        return DoesNotFit(
            f"{format_bytes(needed)} are needed beside experts, which need {format_bytes(least)} themselves, "
            f"there are {format_bytes(self._shared_bytes)} for both",
            "conversation, pictures and experts share one memory, limited when the model was loaded",
            "raise the limit (--ram), shorten the conversation, or give fewer or smaller pictures",
        )

    def _note_waits(self) -> None:
        for stats, reader in self._readers:
            if self._is_decode:
                stats.decode_wait_seconds += reader.waited_seconds
            else:
                stats.prompt_wait_seconds += reader.waited_seconds
            reader.waited_seconds = 0.0

    def _decode(
        self, tokens: RoutedTokens, chosen: list[ExpertKey], shared_page: torch.Tensor | None
    ) -> torch.Tensor:
        chosen = self._with_small_pages(chosen, tokens.weights)
        groups = self._traffic.decode(tokens.bank, chosen)
        first = next(groups)
        if self._routers:
            self._look_ahead(tokens)
        output = torch.zeros_like(tokens.hidden, dtype=torch.float32)
        has_small = any(key.is_small for key in chosen)
        if len(first.keys) == len(chosen) and not has_small:
            self.top.add(output, tokens, shared_page)
            return output.to(tokens.hidden.dtype)
        shared = torch.zeros_like(output)
        if shared_page is not None:
            self.top.add_some(shared, tokens, (), shared_page)
        # A row for each choice: what came first may be added last, so that the
        # sum is the same to the bit wherever the pages were.
        parts = torch.zeros(len(chosen), output.shape[1])
        positions = {key: position for position, key in enumerate(chosen)}
        for group in chain([first], groups):
            if group.keys:
                level = self.level if group.level else self.top
                rows = [positions[key] for key in group.keys]
                results = torch.zeros(len(rows), output.shape[1])
                level.add_some(results, tokens.choices(rows), group.keys, None)
                parts[rows] = results
        for key in sorted(positions):
            output += parts[positions[key]]
        output += shared
        return output.to(tokens.hidden.dtype)

    def _with_small_pages(self, chosen: list[ExpertKey], weights: torch.Tensor) -> list[ExpertKey]:
        """The pages to use for a token's choices: small ones for those of little weight that are missing."""
        below = self.options.small_below
        if below is None or chosen[0].bank != "text":
            return chosen
        top, level = self.top.cache, self.level.cache
        pages = [
            key._replace(is_small=weight < below and key not in top and key not in level)
            for key, weight in zip(chosen, weights.flatten().tolist(), strict=True)
        ]
        self.stats.small_pages_used += sum(key.is_small for key in pages)
        return pages

    def _look_ahead(self, tokens: RoutedTokens) -> None:
        """Begin to read what the next layer would choose for the same token as it is now."""
        layer_id = tokens.layer_id + 1
        router = self._routers.get(layer_id)
        if router is not None and tokens.bank == "text":
            keys = self._below.keys[layer_id, "text"]
            self._below.look_ahead(
                [keys[expert_id] for expert_id in router(tokens.hidden)[0].flatten().tolist()]
            )

    def _stream(
        self, tokens: RoutedTokens, chosen: list[ExpertKey], shared_page: torch.Tensor | None
    ) -> torch.Tensor:
        output = torch.zeros_like(tokens.hidden, dtype=torch.float32)
        num_tokens = tokens.hidden.shape[0]
        for group in self._traffic.stream(tokens.layer_id, tokens.bank, chosen, num_tokens):
            self.top.add_some(output, tokens, group.keys, shared_page if group.is_last else None)
        return output.to(tokens.hidden.dtype)
