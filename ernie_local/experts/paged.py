"""Computes routed experts of which only some are in memory; the others are read when tokens ask for them.

Resident experts of a decoded token are computed while the missing ones are read. A prompt's layers pass as
one stream, and pages are prefetched a window ahead of the computing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import torch

from ernie_local.experts.budget import MemoryBudget
from ernie_local.experts.device import HOST, Device, PageLock
from ernie_local.experts.gpu_memory import GpuMemory
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.level import PageLevel
from ernie_local.experts.options import MissRule, PagingOptions, PagingStats
from ernie_local.experts.readers import DiskReader, PageCopier, PageStore
from ernie_local.experts.traffic import PageGroup, PageTraffic
from ernie_local.experts.two_levels import TwoLevels
from ernie_local.model.kv_cache import CacheMemory
from ernie_local.model.moe import RoutedTokens, TokenRows
from ernie_local.sizes import format_bytes


class RamTier(NamedTuple):
    """RAM: its pages, the policy for them, and what reads them from disk."""

    level: PageLevel
    traffic: PageTraffic
    reader: DiskReader


class GpuTier(NamedTuple):
    """A GPU above RAM: its pages, the traffic of both memories, and what copies pages up.

    page_lock: how well RAM is locked for these copies.
    """

    level: PageLevel
    memory: GpuMemory
    traffic: TwoLevels
    reader: PageCopier
    device: Device
    page_lock: PageLock


class PagedExperts:
    """An ExpertProvider over one memory of pages, or two. One forward at a time. See build.py."""

    def __init__(
        self,
        store: PageStore,
        ram: RamTier,
        budget: MemoryBudget,
        options: PagingOptions,
        gpu: GpuTier | None = None,
    ) -> None:
        """budget: of the memory that experts share with conversations and images."""
        self.store = store
        self.options = options
        self.has_exact_rows = options.small_below is None
        self.ram = ram.level
        self.top = ram.level if gpu is None else gpu.level
        self.budget = budget
        self.takes_shared_page = ram.level.takes_shared_page
        self.traffic: PageTraffic | TwoLevels = ram.traffic if gpu is None else gpu.traffic
        self._gpu = gpu
        self._device: Device = HOST if gpu is None else gpu.device
        self._keys_of = ram.traffic.keys
        # What was found in memory and read from disk since the model was loaded.
        self.stats = ram.traffic.stats
        self._readers: list[tuple[PagingStats, DiskReader | PageCopier]] = [(self.stats, ram.reader)]
        if gpu is not None:
            self._readers.append((gpu.traffic.upper.stats, gpu.reader))
        self._is_decode = False

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages but small ones, in memory or not."""
        return sum(size for key, size in self.store.page_bytes.items() if not key.is_small)

    @property
    def miss_rule(self) -> MissRule:
        """What happens to pages that the GPU lacks."""
        return self.options.miss_rule if self._gpu is None else self._gpu.traffic.rule

    def change_miss_rule(self, rule: MissRule) -> None:
        """Follow another rule from the next forward on. Only for experts on a GPU."""
        assert self._gpu is not None, "there is one memory"
        self._gpu.traffic.rule = rule

    def describe(self) -> list[str]:
        """What a user should know of paging, a line each."""
        held, everything = format_bytes(self.ram.memory.num_bytes), format_bytes(self.num_bytes)
        notes = [f"experts: {held} of memory for {everything}; missing ones are read when a token wants them"]
        if self._gpu is not None:
            memory = self._gpu.memory
            had, planned = format_bytes(memory.num_bytes), format_bytes(memory.planned_bytes)
            shared = "shared with KV cache and workspace"
            notes.append(f"GPU: {had} for experts, {shared}; {self.miss_rule.description}")
            if not memory.workspace_bytes:
                notes.append("GPU: workspace lies apart, as its memory was not given in one piece")
            if memory.num_bytes < memory.planned_bytes:
                notes.append(f"GPU: {had} available for experts and the KV cache ({planned} planned)")
            notes.append(f"memory of experts: {self._gpu.page_lock.describe()}")
        if not self.store.is_direct:
            notes.append("the file system has no direct reads: experts pass through the system's cache")
        return notes

    def check_unchanged(self) -> None:
        """Nothing: each page is compared with what it was; see ExpertProvider.check_unchanged."""

    def begin(self, rows: TokenRows) -> None:
        """Begin a forward: every layer will ask for the banks that have rows."""
        tokens = {bank: len(own) for bank, own in rows.by_bank.items()}
        self._is_decode = self.traffic.begin(tokens, rows.num_sequences)
        self.budget.begin(is_decode=self._is_decode)

    def abort(self) -> None:
        """Pages that are whole stay, all others go; see ExpertProvider.abort."""
        self.traffic.abort()
        for level in (self.ram, self.top):  # nothing is under way any more
            level.last_uses.clear()
        self.budget.abort()

    def make_room(self, owner: object, num_bytes: int) -> None:
        """Keep memory that experts may take; see ExpertProvider.make_room."""
        self.budget.make_room(owner, num_bytes)

    def cache_memory(self) -> CacheMemory | None:
        """Memory for one new KV cache; see ExpertProvider.cache_memory."""
        return self.budget.cache_memory()

    def give_up_memory(self, refusal: str) -> None:
        """Have fewer pages on a GPU from now on; see ExpertProvider.give_up_memory. Told as a warning."""
        gc.collect()  # what the failed computation held in cycles
        self.budget.give_up_memory(refusal)

    def wait_until_resident(self) -> None:
        """Nothing: pages come and go; see ExpertProvider.wait_until_resident."""

    def compute(self, tokens: RoutedTokens) -> torch.Tensor:
        """Weighted sum of each token's experts; see ExpertProvider.compute.

        ModelUnusable for a page that cannot be read; the next forward begins as if this one had not.
        """
        compute = self._decode if self._is_decode else self._stream
        try:
            return compute(tokens)
        except BaseException:
            self.abort()
            raise
        finally:
            for stats, reader in self._readers:
                if self._is_decode:
                    stats.decode_wait_seconds += reader.waited_seconds
                else:
                    stats.prompt_wait_seconds += reader.waited_seconds
                reader.waited_seconds = 0.0

    def close(self) -> None:
        """End the threads and close the files."""
        self.abort()
        for _, reader in self._readers:
            reader.close()
        self._device.finish()

    def _decode(self, tokens: RoutedTokens) -> torch.Tensor:
        on_host = self._read_back(tokens)
        chosen = self._with_small_pages(self._keys(tokens, on_host.expert_ids), on_host.expert_weights)
        groups = self.traffic.decode(tokens.bank, chosen)
        first = next(groups)
        output = torch.zeros_like(tokens.hidden, dtype=torch.float32)
        has_small = self.options.small_below is not None and any(key.is_small for key in chosen)
        if first.is_last and not has_small:
            self.top.add(output, tokens, chosen)
            return output.to(tokens.hidden.dtype)
        shared = torch.zeros_like(output)
        if tokens.shared_page is not None:
            self.top.add_some(shared, tokens, ())
        parts = self._compute_apart(chain([first], groups), tokens, on_host)
        # Of each token its experts in the order of their ids, as one call adds them.
        order = on_host.expert_ids.argsort(dim=1, stable=True)  # (tokens, top_k)
        order += torch.arange(0, len(chosen), order.shape[1], device=order.device)[:, None]
        for part in parts[self._device.send(order)].unbind(1):  # (tokens, hidden_size)
            output += part
        output += shared
        return output.to(tokens.hidden.dtype)

    def _compute_apart(
        self, groups: Iterable[PageGroup], tokens: RoutedTokens, on_host: RoutedTokens
    ) -> torch.Tensor:
        """What each choice of each token gives, (tokens * top_k, hidden_size) float32.

        The rows are added in a fixed order, so that the sum is the same to the bit wherever the pages were.
        """
        rows = tokens.apart()
        parts = torch.zeros_like(rows.hidden, dtype=torch.float32)
        # What the processor computes besides a GPU stays there until all is done.
        below: torch.Tensor | None = None
        for group in groups:
            if group.keys and group.level == 0:
                self.top.add_some(parts, rows, group.keys)
            elif group.keys:
                below = torch.zeros(parts.shape, device="cpu") if below is None else below
                self.ram.add_some(below, on_host.apart(), group.keys)
        if below is not None:
            parts += self._device.send(below)
        return parts

    def _read_back(self, tokens: RoutedTokens) -> RoutedTokens:
        """What the host needs to know of the tokens, in one transfer; all else stays on the device."""
        if self._gpu is None:
            return tokens
        wanted = [tokens.expert_ids]
        if self.options.small_below is not None or self.miss_rule.computes:
            wanted += [tokens.expert_weights, tokens.hidden]
        ids, *others = self._device.read_back(wanted)
        weights, hidden = others or (tokens.expert_weights, tokens.hidden)
        return RoutedTokens(tokens.layer_id, tokens.bank, hidden, ids, weights)

    def _keys(self, tokens: RoutedTokens, ids: torch.Tensor) -> list[ExpertKey]:
        """Pages of all choices, one token's after the other's. ids: the tokens', on the host."""
        keys = self._keys_of[tokens.layer_id, tokens.bank]
        return [keys[expert_id] for expert_id in ids.flatten().tolist()]

    def _with_small_pages(self, chosen: list[ExpertKey], weights: torch.Tensor) -> list[ExpertKey]:
        """The pages to use for these choices: small ones for missing experts of little weight for all."""
        below = self.options.small_below
        if below is None or chosen[0].bank != "text":
            return chosen
        top, ram = self.top.cache, self.ram.cache
        large = {
            key
            for key, weight in zip(chosen, weights.flatten().tolist(), strict=True)
            if weight >= below or key in top or key in ram
        }
        pages = [key._replace(is_small=key not in large) for key in chosen]
        self.stats.small_pages_used += sum(key.is_small for key in pages)
        return pages

    def _stream(self, tokens: RoutedTokens) -> torch.Tensor:
        (ids,) = self._device.read_back([tokens.expert_ids])
        chosen = self._keys(tokens, ids)
        output = torch.zeros_like(tokens.hidden, dtype=torch.float32)
        num_tokens = tokens.hidden.shape[0]
        alone = tokens._replace(shared_page=None)
        for group in self.traffic.stream(tokens.layer_id, tokens.bank, chosen, num_tokens):
            self.top.add_some(output, tokens if group.is_last else alone, group.keys)
        return output.to(tokens.hidden.dtype)
