"""How conversations and images come by memory beside experts in RAM: experts give way.

Owns who has how much of it now, and the refusal of more than there is. Of a GPU that is gpu_room.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

from ernie_local.errors import DoesNotFit
from ernie_local.experts.page_level import PageLevel
from ernie_local.experts.page_memory import trim_heap
from ernie_local.experts.paging_plan import PagingPlan
from ernie_local.model.kv_cache import CacheMemory
from ernie_local.sizes import format_bytes


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
                "raise the limit (--ram), shorten the conversation, or give fewer or smaller images",
            )
        if is_less:
            trim_heap()
        self._level.use_frames(num_frames)

    def cache_memory(self, rest: Callable[[], None]) -> None:
        """See Room.cache_memory. None: of memory that is reserved and not touched the system has the use."""
