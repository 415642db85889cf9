"""Shares memory between experts, conversations and images: experts give way.

In RAM, frames go back to the system and come again. On a GPU, the KV cache of one conversation lies at the
end of the allocation that holds pages, and experts lose their last frames as it grows. Attention, images in
the vision tower and a second conversation use torch's own allocator, which cannot use a hole in that
allocation: a workspace of fixed size was left for them when the model was loaded.
"""

from __future__ import annotations

import weakref
from weakref import WeakKeyDictionary

import torch

from ernie_local.errors import DoesNotFit, parameter
from ernie_local.experts.device import trim_heap
from ernie_local.experts.level import PageLevel
from ernie_local.experts.plan import PagingPlan
from ernie_local.experts.traffic import PageTraffic
from ernie_local.sizes import format_bytes


class RamBudget:
    """A level's RAM: experts have what others do not need of it."""

    def __init__(self, level: PageLevel, plan: PagingPlan, num_bytes: int) -> None:
        """num_bytes: what experts and others have together."""
        self._level = level
        self._plan = plan
        self._num_bytes = num_bytes
        self._needed: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    def make_room(self, owner: object, num_bytes: int) -> None:
        """Keep this much for `owner` until it says another number, or is gone: experts lose or regain frames.

        DoesNotFit for more than experts can give.
        """
        before = self._needed.get(owner, 0)
        self._needed[owner] = num_bytes
        needed = _sum_of(self._needed)
        num_frames = (self._num_bytes - needed) // self._plan.frame_bytes
        if num_frames < self._plan.least_frames:
            self._needed[owner] = before
            least = self._plan.least_bytes
            raise DoesNotFit(
                f"conversations and images need {format_bytes(needed)} besides experts, which need at least "
                f"{format_bytes(least)}; {format_bytes(self._num_bytes)} is available for both",
                "they share one memory, whose limit was set when the model was loaded",
                f"raise {parameter('ram')}, shorten or end a conversation, or give fewer or smaller images",
            )
        if num_bytes < before:
            trim_heap()
        self._level.use_frames(num_frames)

    def cache_memory(self) -> None:
        """None: reserved memory that is not touched costs nothing, so a KV cache may have its own."""


class GpuBudget:
    """A GPU's memory besides weights. One forward at a time, and none while a cache is resized."""

    def __init__(self, level: PageLevel, traffic: PageTraffic, plan: PagingPlan, num_bytes: int) -> None:
        """level, traffic: of the GPU; their cache was built by `plan`. num_bytes: of the workspace."""
        self._level = level
        self._traffic = traffic
        self._plan = plan
        self._num_bytes = num_bytes
        self._needed: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._at_end: weakref.ref[GpuCacheMemory] | None = None

    def make_room(self, owner: object, num_bytes: int) -> None:
        """Keep this much of the workspace for `owner` until it says another number, or is gone."""
        before = self._needed.get(owner, 0)
        self._needed[owner] = num_bytes
        needed = _sum_of(self._needed)
        if needed > self._num_bytes:
            self._needed[owner] = before
            raise DoesNotFit(
                f"{format_bytes(needed)} of GPU workspace needed, {format_bytes(self._num_bytes)} was kept",
                "workspace for attention, images and a second conversation is fixed when a model is loaded",
                "give fewer or smaller images, end other conversations, or load with a larger context",
            )

    def cache_memory(self) -> GpuCacheMemory:
        """Memory for a new KV cache: the end of the pages' allocation, or the workspace if that is taken."""
        return GpuCacheMemory(self)

    def resize_cache(self, cache: GpuCacheMemory, num_bytes: int) -> torch.Tensor:
        """See CacheMemory.resize. The first cache has the end of the pages' memory until it is gone.

        Then its frames come back with the next call. A cache in the workspace counts twice for a moment, as
        it is copied when it grows.
        """
        owner = None if self._at_end is None else self._at_end()
        if owner is None or owner is cache:
            memory = self._take_end(num_bytes)
            self._at_end = weakref.ref(cache)
            self.make_room(cache, 0)
            return memory
        self.make_room(cache, self._needed.get(cache, 0) + num_bytes)
        memory = torch.empty(num_bytes, dtype=torch.uint8, device=self._level.memory.bytes.device)
        self.make_room(cache, num_bytes)
        return memory

    def _take_end(self, num_bytes: int) -> torch.Tensor:
        memory, frame_bytes = self._level.memory, self._plan.frame_bytes
        num_frames = (memory.num_bytes - num_bytes) // frame_bytes
        if num_frames < self._plan.least_frames:
            least = format_bytes(self._plan.least_frames * frame_bytes)
            raise DoesNotFit(
                f"the conversation needs {format_bytes(num_bytes)} of the GPU and experts at least {least}; "
                f"{format_bytes(memory.num_bytes)} is available for both",
                "they share one allocation, as large as the GPU allowed when the model was loaded",
                "shorten the conversation, use kv_dtype int8, or load with more vram",
            )
        self._traffic.drain()
        self._level.use_first_frames(num_frames)
        return memory.bytes[memory.num_bytes - num_bytes :]


class GpuCacheMemory:
    """The CacheMemory of one KV cache on a GPU."""

    def __init__(self, budget: GpuBudget) -> None:
        self._budget = budget

    def resize(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8; see CacheMemory.resize."""
        return self._budget.resize_cache(self, num_bytes)


def _sum_of(needed: WeakKeyDictionary[object, int]) -> int:
    """Of owners that are not gone. One may go at any moment, by garbage collection in another thread."""
    owners = [owner for reference in needed.keyrefs() if (owner := reference()) is not None]
    return sum(needed.get(owner, 0) for owner in owners)


MemoryBudget = RamBudget | GpuBudget  # answers `make_room` and `cache_memory` of an ExpertProvider
