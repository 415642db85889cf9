"""Shares memory between experts, conversations and images: experts give way.

In RAM, frames go back to the system and come again. On a GPU, the KV cache of one conversation lies at the
end of the allocation that holds pages, and experts lose their last frames as it grows; weights for images lie
before it while these are encoded. Chunks of prompts, images in the vision tower and a second conversation use
torch's own allocator, which has the front of the allocation for as long as there are any (gpu_memory.py).
Where a GPU refuses memory that had been counted, as another program took it, experts have a smaller
allocation from then on; the cache at its end lies in RAM while one is given back and the other is taken.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch

from ernie_local.errors import DoesNotFit, parameter
from ernie_local.experts.device import trim_heap
from ernie_local.experts.gpu_memory import GpuMemory, GpuMemoryWarning, out_of_memory
from ernie_local.experts.keys import UNIT_BYTES
from ernie_local.experts.level import PageLevel
from ernie_local.experts.plan import PagingPlan, lent_bytes, workspace_pieces
from ernie_local.experts.traffic import PageTraffic
from ernie_local.sizes import aligned, format_bytes

_STEPS = 16  # what is given up at a time is this part of the plan


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

    def begin(self, *, is_decode: bool) -> None:
        """Nothing: frames come back as soon as others need less."""

    def give_up_memory(self, refusal: str) -> None:
        """OutOfMemory: what had been counted was refused, and no other memory is here."""
        raise out_of_memory(refusal)

    def abort(self) -> None:
        """Nothing: `make_room` follows."""

    def cache_memory(self) -> None:
        """None: reserved memory that is not touched costs nothing, so a KV cache may have its own."""


class GpuBudget:
    """A GPU's memory besides weights. One forward at a time, and none while a cache is resized."""

    def __init__(
        self,
        level: PageLevel,
        ram: PageLevel,
        traffic: PageTraffic,
        plan: PagingPlan,
        num_bytes: int,
        host_cache_bytes: int = 0,
    ) -> None:
        """level, traffic: of the GPU; their cache was built by `plan`, as that of `ram` was, the level below.

        num_bytes: of the workspace. host_cache_bytes: of RAM, for rows of caches that lie there.
        """
        assert isinstance(level.memory, GpuMemory)
        self._level = level
        self._ram = ram
        self._num_frames = level.cache.slots.num_frames
        self._num_ram_frames = ram.cache.slots.num_frames
        self._memory = level.memory
        self._traffic = traffic
        self._plan = plan
        self._num_bytes = num_bytes
        self._needed: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._host_cache_bytes = host_cache_bytes
        self._in_ram: WeakKeyDictionary[object, int] = WeakKeyDictionary()  # of that, by cache
        self._at_end: weakref.ref[GpuCacheMemory] | None = None
        self._cache_bytes = 0  # of that cache
        self._weight_bytes = 0  # before it, for images
        self._may_take_back = True
        # RAM in which the cache lies that belongs at the end, while a smaller allocation takes the place of
        # one of `_had_bytes`.
        self._away: torch.Tensor | None = None
        self._had_bytes = 0

    @property
    def _end_bytes(self) -> int:
        """Of the cache at the end; 0 when it is gone."""
        return 0 if self._at_end is None or self._at_end() is None else self._cache_bytes

    def make_room(self, owner: object, num_bytes: int) -> None:
        """Keep this much of the workspace for `owner` until it says another number, or is gone.

        DoesNotFit for more than there is.
        """
        if num_bytes:
            self._check_there()
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
        if needed:
            self._may_take_back = True
        if needed > self._memory.lent_bytes < self._memory.workspace_bytes:
            lent = lent_bytes(self._memory.workspace_bytes, needed)
            frames = self._frames(lent, self._end_bytes + self._weight_bytes)
            if len(frames) < self._plan.least_frames:
                self._needed[owner] = before
                raise self._refusal(f"{format_bytes(needed)} of GPU workspace needed")
            self._traffic.drain()
            self._level.use_only_frames(frames)
            self._memory.lend(needed)

    def begin(self, *, is_decode: bool) -> None:
        """A forward begins: where it is decode and nothing needs the workspace, experts have its memory.

        torch.OutOfMemoryError while there is no memory (`give_up_memory`).
        """
        self._check_there()
        if is_decode and self._memory.lent_bytes and self._may_take_back and not _sum_of(self._needed):
            # What torch has left there will not be gone before the next prompt.
            self._may_take_back = False
            if self._memory.take_back():
                self._level.use_only_frames(self._frames(0, self._end_bytes))
            else:
                self._tell_kept()

    def _tell_kept(self) -> None:
        stats = self._traffic.stats
        stats.kept_workspaces += 1
        if stats.kept_workspaces == 1:
            lent = format_bytes(self._memory.lent_bytes)
            warnings.warn(
                f"GPU: {lent} of workspace did not come back for experts of the answer, as torch still holds "
                "some of it",
                GpuMemoryWarning,
                stacklevel=2,
            )

    def abort(self) -> None:
        """Give pages the frames that nobody else has; a change of them may have been interrupted."""
        if self._away is not None:
            return  # no page is there, and no forward begins
        self._ram.use_only_frames(range(self._num_ram_frames))
        self._level.use_only_frames(
            self._frames(self._memory.lent_bytes, self._end_bytes + self._weight_bytes)
        )

    def give_up_memory(self, refusal: str) -> None:
        """Have a smaller allocation after the GPU has refused memory; nobody computes.

        DoesNotFit where experts have their least; also if another program takes what is given back. Then the
        conversation is in RAM, and the next forward asks for this again.
        """
        frame_bytes = self._plan.frame_bytes
        beside = sum(workspace_pieces(self._num_bytes)) + self._end_bytes
        least = aligned(beside + self._plan.least_frames * frame_bytes, frame_bytes)
        total = self._memory.total_bytes
        if self._away is None and total <= least:
            raise DoesNotFit(
                f"the GPU has no more memory: {refusal}; experts, workspace and the conversation hold "
                f"{format_bytes(total)}, of which they need {format_bytes(least)}",
                "another program took memory that was free when the model was loaded",
                f"close other programs, shorten the conversation, or load with less {parameter('vram')}",
            )
        if self._away is None:
            self._had_bytes = total
            self._put_away()
        step = max(frame_bytes, self._memory.planned_bytes // _STEPS)
        if not 0 < self._memory.total_bytes < self._had_bytes:  # an interruption may have come behind it
            self._memory.allocate(max(least, self._had_bytes - step), least)
        self._bring_back()
        given_up, now = self._had_bytes - self._memory.total_bytes, format_bytes(self._memory.num_bytes)
        self._traffic.stats.given_up_bytes += given_up
        warnings.warn(
            f"GPU: {format_bytes(given_up)} given up, as there was no more memory ({refusal}); experts and "
            f"the conversation have {now} from now on, and the work begins again",
            GpuMemoryWarning,
            stacklevel=2,
        )

    def _put_away(self) -> None:
        """Copy the cache at the end to RAM, where pages lose their frames; the GPU has no pages any more."""
        num_bytes, frame_bytes = self._end_bytes, self._plan.frame_bytes
        frames = range(-(-num_bytes // frame_bytes), self._num_ram_frames)
        if len(frames) < self._plan.least_frames:
            raise DoesNotFit(
                f"the conversation has {format_bytes(num_bytes)} on the GPU, RAM for experts is "
                f"{format_bytes(self._num_ram_frames * frame_bytes)}",
                "the GPU has no more memory, as another program took it; the conversation has to lie in RAM "
                "while memory is given back",
                f"close other programs, shorten the conversation, or load with more {parameter('ram')}",
            )
        self._level.cache.clear()
        self._ram.use_only_frames(frames)
        held = self._ram.memory.bytes[:num_bytes]
        held.copy_(self._at_end_now(num_bytes))
        # From here on the copy is what counts, whatever interrupts this.
        self._away = held
        self._tell_cache(held)

    def _bring_back(self) -> None:
        """Have the cache that was put away at the end again, and pages in all other frames."""
        assert self._away is not None
        if self._end_bytes:  # else the conversation is gone by now
            place = self._at_end_now(self._end_bytes)
            place.copy_(self._away)
            self._tell_cache(place)
        self._away = None
        self._may_take_back = True
        self.abort()

    def _tell_cache(self, memory: torch.Tensor) -> None:
        cache = None if self._at_end is None else self._at_end()
        if cache is not None:
            cache.move_to(memory)

    def _check_there(self) -> None:
        if self._away is not None:
            raise torch.OutOfMemoryError("its memory was given back, and could not be had again")

    def _at_end_now(self, num_bytes: int) -> torch.Tensor:
        return self._memory.bytes[self._memory.num_bytes - num_bytes :]

    def cache_memory(self) -> GpuCacheMemory:
        """Memory for a new KV cache: the end of the pages' allocation, or the workspace if that is taken."""
        return GpuCacheMemory(self)

    def resize_cache(self, cache: GpuCacheMemory, num_bytes: int) -> torch.Tensor:
        """See CacheMemory.resize. The first cache has the end of the pages' memory until it is gone.

        Then its frames come back with the next call. A cache in the workspace counts twice for a moment, as
        it is copied when it grows.
        """
        self._check_there()
        owner = None if self._at_end is None else self._at_end()
        if owner is None or owner is cache:
            return self._take_end(num_bytes)
        before = self._needed.get(cache, 0)
        self.make_room(cache, before + num_bytes)
        try:
            memory = torch.empty(num_bytes, dtype=torch.uint8, device=self._level.memory.bytes.device)
        except torch.OutOfMemoryError:
            self.make_room(cache, before)
            raise
        self.make_room(cache, num_bytes)
        return memory

    def use_resized(self, cache: GpuCacheMemory, memory: torch.Tensor) -> None:
        """See CacheMemory.use_resized. Only now is the end the cache's, as its rows were elsewhere before."""
        if memory.untyped_storage().data_ptr() != self._memory.bytes.untyped_storage().data_ptr():
            return  # in the workspace
        self._cache_bytes = memory.nbytes
        self._at_end = weakref.ref(cache)
        self._needed.pop(cache, None)

    def keep_in_ram(self, cache: GpuCacheMemory, num_bytes: int) -> None:
        """See CacheMemory.keep_in_ram."""
        before = self._in_ram.get(cache, 0)
        if num_bytes <= before:
            return  # a cache gives no memory back before it is gone
        self._in_ram[cache] = num_bytes
        needed = _sum_of(self._in_ram)
        if needed > self._host_cache_bytes:
            self._in_ram[cache] = before
            raise DoesNotFit(
                f"conversations need {format_bytes(needed)} of RAM for layers that attend there, "
                f"{format_bytes(self._host_cache_bytes)} was kept",
                "it was kept for one conversation of the whole context when the model was loaded",
                "end other conversations, or shorten this one",
            )

    def lend_for_weights(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8 for weights that images pass through, until `take_weights_back`.

        DoesNotFit for more than experts can give. Call it when the workspace for encoding has been kept.
        """
        num_bytes = aligned(num_bytes, UNIT_BYTES)
        self._give_end(self._end_bytes + num_bytes, "the image and its conversation need {} of the GPU")
        self._weight_bytes = num_bytes
        start = self._memory.num_bytes - self._end_bytes - num_bytes
        return self._memory.bytes[start : start + num_bytes]

    def take_weights_back(self) -> None:
        """Have the frames for experts again, if any were lent."""
        if self._weight_bytes:
            self._weight_bytes = 0
            self._traffic.drain()
            self._level.use_only_frames(self._frames(self._memory.lent_bytes, self._end_bytes))

    def _take_end(self, num_bytes: int) -> torch.Tensor:
        assert not self._weight_bytes, "no image is encoded while a cache is resized"
        self._give_end(num_bytes, "the conversation needs {} of the GPU")
        return self._at_end_now(num_bytes)

    def _give_end(self, num_bytes: int, what: str) -> None:
        """Take the last `num_bytes` from experts. what: the words of a refusal, with a place for them."""
        frames = self._frames(self._memory.lent_bytes, num_bytes)
        if len(frames) < self._plan.least_frames:
            raise self._refusal(what.format(format_bytes(num_bytes)))
        self._traffic.drain()
        self._level.use_only_frames(frames)

    def _refusal(self, what: str) -> DoesNotFit:
        least = format_bytes(self._plan.least_frames * self._plan.frame_bytes)
        lent = self._memory.lent_bytes
        beside = f", of which {format_bytes(lent)} are workspace" if lent else ""
        return DoesNotFit(
            f"{what} and experts at least {least}; {format_bytes(self._memory.num_bytes)} is available for "
            f"both{beside}",
            "they share one allocation, as large as the GPU allowed when the model was loaded",
            f"shorten the conversation, use {parameter('kv_dtype', 'int8')}, give smaller images, or load "
            f"with more {parameter('vram')}",
        )

    def _frames(self, first_bytes: int, last_bytes: int) -> range:
        """Whole frames between so many bytes at the front and at the end."""
        frame_bytes = self._plan.frame_bytes
        # A smaller allocation may have its workspace in front where a larger one had it apart.
        end = min((self._memory.num_bytes - last_bytes) // frame_bytes, self._num_frames)
        return range(-(-first_bytes // frame_bytes), end)


class GpuCacheMemory:
    """The CacheMemory of one KV cache on a GPU."""

    def __init__(self, budget: GpuBudget) -> None:
        self._budget = budget
        self._follow: weakref.WeakMethod[Callable[[torch.Tensor], None]] | None = None

    def on_move(self, follow: Callable[[torch.Tensor], None]) -> None:
        """See CacheMemory.on_move."""
        self._follow = weakref.WeakMethod(follow)

    def move_to(self, memory: torch.Tensor) -> None:
        """The bytes have been copied to `memory`; the cache uses it from now on."""
        follow = None if self._follow is None else self._follow()
        if follow is not None:
            follow(memory)

    def resize(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8; see CacheMemory.resize."""
        return self._budget.resize_cache(self, num_bytes)

    def use_resized(self, memory: torch.Tensor) -> None:
        """See CacheMemory.use_resized."""
        self._budget.use_resized(self, memory)

    def keep_in_ram(self, num_bytes: int) -> None:
        """See CacheMemory.keep_in_ram."""
        self._budget.keep_in_ram(self, num_bytes)


def _sum_of(needed: WeakKeyDictionary[object, int]) -> int:
    """Of owners that are not gone. One may go at any moment, by garbage collection in another thread."""
    owners = [owner for reference in needed.keyrefs() if (owner := reference()) is not None]
    return sum(needed.get(owner, 0) for owner in owners)


MemoryBudget = RamBudget | GpuBudget  # answers `make_room` and `cache_memory` of an ExpertProvider
