"""Routed experts of which only some are in memory: the others are read when tokens ask for them.

Owns the computing, and who else needs of the memory. A decoded token's experts that are there are computed
while the missing ones are read; a prompt's layers pass as one stream, a window of pages ahead of the
computing. Their order is page_traffic.py's, who stays page_cache.py's, how a page is read page_store.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain

import torch

from ernie_local.experts.budget import Room
from ernie_local.experts.copier import GpuCopier, PageCopier
from ernie_local.experts.device import HOST, Device, Gpu
from ernie_local.experts.disk import DiskReader, PageStore
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.level import PageLevel
from ernie_local.experts.memory import PageLock
from ernie_local.experts.options import MissRule, PagingOptions, PagingStats
from ernie_local.experts.plan import PagingPlan
from ernie_local.experts.traffic import PageGroup, PageTraffic
from ernie_local.experts.two_levels import LendingReader, TwoLevels
from ernie_local.model.kv_cache import CacheMemory
from ernie_local.model.moe import RoutedTokens, TokenRows

# Of (tokens, hidden_size) states the (tokens, top_k) experts, and their weights.
TextRouter = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class PagedExperts:
    """An ExpertProvider over one memory of pages, or two. One forward at a time."""

    def __init__(
        self,
        store: PageStore,
        level: PageLevel,
        plan: PagingPlan,
        room: Room,
        upper: PageLevel | None = None,
        options: PagingOptions | None = None,
        gpu: Gpu | None = None,
        page_lock: PageLock | None = None,
    ) -> None:
        """level: filled from disk; upper: a faster one above it. Their caches were built by `plan`.

        room: for conversations and images. GPU: what the upper level is on, and computes from there; None
        where it is memory of the processor too. page_lock: what the GPU reads the lower level by.
        """
        assert gpu is None or upper is not None
        self.store = store
        self.room = room
        self.page_lock = page_lock
        self._device: Device = HOST if gpu is None else gpu
        self.options = PagingOptions() if options is None else options
        self._routers: Mapping[int, TextRouter] = {}
        self.level = level
        self.top = level if upper is None else upper
        self.takes_shared_page = level.takes_shared_page
        self._page_bytes = {key: store.page_bytes(key) for key in store.experts}
        disk = DiskReader(store, level)
        self._below = PageTraffic(level.cache, plan, self._page_bytes, disk)
        self._traffic: PageTraffic | TwoLevels = self._below
        self._readers: list[tuple[PagingStats, DiskReader | PageCopier | GpuCopier]] = [
            (self._below.stats, disk)
        ]
        if upper is not None:
            copier = PageCopier(upper, level, disk) if gpu is None else GpuCopier(upper, level, disk, gpu)
            lending = LendingReader(self._below, copier)
            above = PageTraffic(upper.cache, plan, self._page_bytes, lending)
            self._traffic = TwoLevels(above, self._below, self.options.miss_rule)
            self._readers.append((above.stats, copier))
            self._below.stats.gpu = above.stats
        self._is_decode = False

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
        self._is_decode = self._traffic.begin({bank: len(own) for bank, own in rows.by_bank.items()})

    def make_room(self, owner: object, num_bytes: int) -> None:
        """See ExpertProvider.make_room."""
        self.room.make(owner, num_bytes)

    def cache_memory(self) -> CacheMemory | None:
        """See ExpertProvider.cache_memory."""
        return self.room.cache_memory(self._rest)

    def compute(self, tokens: RoutedTokens) -> torch.Tensor:
        """See ExpertProvider.compute. ModelUnusable for a page that cannot be read, with nothing lost."""
        compute = self._decode if self._is_decode else self._stream
        try:
            return compute(tokens)
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
        self._device.finish()

    def _rest(self) -> None:
        """Nobody computes: have all pages come that are on their way. ModelUnusable for one that cannot."""
        try:
            self._traffic.rest()
        except BaseException:
            self._traffic.give_up()
            raise

    def _note_waits(self) -> None:
        for stats, reader in self._readers:
            if self._is_decode:
                stats.decode_wait_seconds += reader.waited_seconds
            else:
                stats.prompt_wait_seconds += reader.waited_seconds
            reader.waited_seconds = 0.0

    def _decode(self, tokens: RoutedTokens) -> torch.Tensor:
        on_host = self._read_back(tokens)
        chosen = self._with_small_pages(self._keys(tokens, on_host.expert_ids), on_host.expert_weights)
        groups = self._traffic.decode(tokens.bank, chosen)
        first = next(groups)
        if self._routers:
            self._look_ahead(on_host)
        output = torch.zeros_like(tokens.hidden, dtype=torch.float32)
        has_small = self.options.small_below is not None and any(key.is_small for key in chosen)
        if len(first.keys) == len(chosen) and not has_small:
            self.top.add(output, tokens, chosen)
            return output.to(tokens.hidden.dtype)
        shared = torch.zeros_like(output)
        if tokens.shared_page is not None:
            self.top.add_some(shared, tokens, ())
        parts = self._compute_apart(chain([first], groups), tokens, on_host)
        positions = {key: position for position, key in enumerate(chosen)}
        for key in sorted(positions):
            output += parts[positions[key]]
        output += shared
        return output.to(tokens.hidden.dtype)

    def _compute_apart(
        self, groups: Iterable[PageGroup], tokens: RoutedTokens, on_host: RoutedTokens
    ) -> torch.Tensor:
        """What each choice of a token gives, (top_k, hidden_size) float32.

        A row for each: what came first may be added last, so that the sum is the same to the bit wherever the
        pages were.
        """
        rows = tokens.apart()
        parts = torch.zeros_like(rows.hidden, dtype=torch.float32)
        # What the processor computes beside a GPU stays there until all is done.
        below = parts if self._device is HOST else torch.zeros(parts.shape, device="cpu")
        is_below = False
        for group in groups:
            if group.keys and group.level == 0:
                self.top.add_some(parts, rows, group.keys)
            elif group.keys:
                self.level.add_some(below, on_host.apart(), group.keys)
                is_below = True
        if is_below and below is not parts:
            parts += self._device.send(below)
        return parts

    def _read_back(self, tokens: RoutedTokens) -> RoutedTokens:
        """Of one token what the host needs to know, in one transfer; all else stays where it is."""
        if self._device is HOST:
            return tokens
        wanted = [tokens.expert_ids]
        if self.options.small_below is not None or self.miss_rule.computes:
            wanted += [tokens.expert_weights, tokens.hidden]
        ids, *others = self._device.read_back(wanted)
        weights, hidden = others or (tokens.expert_weights, tokens.hidden)
        return RoutedTokens(tokens.layer_id, tokens.bank, hidden, ids, weights)

    def _keys(self, tokens: RoutedTokens, ids: torch.Tensor) -> list[ExpertKey]:
        """Pages of all choices, a token's after the other's. ids: the tokens', on the host."""
        keys = self._below.keys[tokens.layer_id, tokens.bank]
        return [keys[expert_id] for expert_id in ids.flatten().tolist()]

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

    def _stream(self, tokens: RoutedTokens) -> torch.Tensor:
        (ids,) = self._device.read_back([tokens.expert_ids])
        chosen = self._keys(tokens, ids)
        output = torch.zeros_like(tokens.hidden, dtype=torch.float32)
        num_tokens = tokens.hidden.shape[0]
        alone = tokens._replace(shared_page=None)
        for group in self._traffic.stream(tokens.layer_id, tokens.bank, chosen, num_tokens):
            self.top.add_some(output, tokens if group.is_last else alone, group.keys)
        return output.to(tokens.hidden.dtype)
