"""Shares memory between experts, conversations and images: experts give way.

In RAM, frames go back to the system and come again. On a GPU, the KV cache of one conversation lies at the
end of the allocation that holds pages, and experts lose their last frames as it grows. Attention, images in
the vision tower and a second conversation use torch's own allocator, which cannot use a hole in that
allocation: a fixed room was left for them when the model was loaded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from ernie_local.errors import DoesNotFit, parameter
from ernie_local.experts.level import PageLevel
from ernie_local.experts.memory import trim_heap
from ernie_local.experts.plan import PagingPlan
from ernie_local.model.kv_cache import CacheMemory
from ernie_local.sizes import format_bytes


class GpuRoom:
    """A Room of a GPU. One forward at a time, and none while a cache is resized."""

    def __init__(self, level: PageLevel, plan: PagingPlan, num_bytes: int) -> None:
        """level: of the GPU; its cache was built by `plan`. num_bytes: of the fixed room."""
        self._level = level
        self._plan = plan
        self._num_bytes = num_bytes
        self._needed: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._at_end: weakref.ref[_LentMemory] | None = None

    def make(self, owner: object, num_bytes: int) -> None:
        """See Room.make; of the fixed room."""
        before = self._needed.get(owner, 0)
        self._needed[owner] = num_bytes
        needed = sum(self._needed.values())
        if needed > self._num_bytes:
            self._needed[owner] = before
            raise DoesNotFit(
                f"{format_bytes(needed)} of the GPU are needed beside experts, "
                f"{format_bytes(self._num_bytes)} were kept for that",
                "the room for attention, images and a second conversation is fixed when a model is loaded",
                "give fewer or smaller images, end other conversations, or load with a larger context",
            )

    def cache_memory(self, rest: Callable[[], None]) -> _LentMemory:
        """See Room.cache_memory."""
        return _LentMemory(self, rest)

    def lend(self, borrower: _LentMemory, num_bytes: int) -> torch.Tensor:
        """See CacheMemory.resize. Who comes first has the end of the pages' memory until it is gone.

        Frames of one that is gone come back with the next call. What another one has in the fixed room counts
        twice for a moment, as it is copied when it grows.
        """
        owner = None if self._at_end is None else self._at_end()
        if owner is None or owner is borrower:
            memory = self._take_end(num_bytes, borrower.rest)
            self._at_end = weakref.ref(borrower)
            self.make(borrower, 0)
            return memory
        self.make(borrower, self._needed.get(borrower, 0) + num_bytes)
        memory = torch.empty(num_bytes, dtype=torch.uint8, device=self._level.memory.bytes.device)
        self.make(borrower, num_bytes)
        return memory

    def _take_end(self, num_bytes: int, rest: Callable[[], None]) -> torch.Tensor:
        memory, frame_bytes = self._level.memory, self._plan.frame_bytes
        num_frames = (memory.num_bytes - num_bytes) // frame_bytes
        if num_frames < self._plan.least_frames:
            least = format_bytes(self._plan.least_frames * frame_bytes)
            raise DoesNotFit(
                f"the conversation needs {format_bytes(num_bytes)} of the GPU and experts {least} at least, "
                f"there are {format_bytes(memory.num_bytes)} for both",
                "they share one memory, as large as the GPU allowed when the model was loaded",
                f"shorten the conversation, use {parameter('kv_dtype', 'int8')}, or more {parameter('vram')}",
            )
        rest()
        self._level.keep_first_frames(num_frames)
        return memory.bytes[memory.num_bytes - num_bytes :]


class _LentMemory:
    """The CacheMemory of one cache."""

    def __init__(self, room: GpuRoom, rest: Callable[[], None]) -> None:
        self.rest = rest
        self._room = room

    def resize(self, num_bytes: int) -> torch.Tensor:
        """See CacheMemory.resize."""
        return self._room.lend(self, num_bytes)


class Room(Protocol):
    """What `ExpertProvider.make_room` and `cache_memory` ask."""

    def make(self, owner: object, num_bytes: int) -> None:
        """See ExpertProvider.make_room."""
        ...

    def cache_memory(self, rest: Callable[[], None]) -> CacheMemory | None:
        """See ExpertProvider.cache_memory. rest: has all pages come that are on their way, and holds none."""
        ...


class SharedRoom:
    """Memory of a level that experts share with others: frames go back to the system and come again."""

    def __init__(self, level: PageLevel, plan: PagingPlan, num_bytes: int) -> None:
        """num_bytes: what experts and others have together."""
        self._level = level
        self._plan = plan
        self._num_bytes = num_bytes
        self._needed: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    def make(self, owner: object, num_bytes: int) -> None:
        """See Room.make."""
        is_less = num_bytes < self._needed.get(owner, 0)
        self._needed[owner] = num_bytes
        needed = sum(self._needed.values())
        num_frames = (self._num_bytes - needed) // self._plan.frame_bytes
        if num_frames < self._plan.least_frames:
            self._needed[owner] = 0
            least = self._plan.least_bytes
            raise DoesNotFit(
                f"{format_bytes(needed)} are needed beside experts, which need {format_bytes(least)} "
                f"themselves, there are {format_bytes(self._num_bytes)} for both",
                "conversation, images and experts share one memory, limited when the model was loaded",
                f"raise {parameter('ram')}, shorten the conversation, or give fewer or smaller images",
            )
        if is_less:
            trim_heap()
        self._level.use_frames(num_frames)

    def cache_memory(self, rest: Callable[[], None]) -> None:
        """See Room.cache_memory. None: of memory that is reserved and not touched the system has the use."""
