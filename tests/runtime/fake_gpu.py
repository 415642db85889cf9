"""A GPU that is not there: it copies as late as it may, and finds what is done in no order that would hold.

Each stream's work is numbered. A clock says up to which number the work of each stream has surely been
done, as the events tell that were waited for; a page is read or overwritten rightly only if the clock
covers who wrote or read it before. Bytes move when somebody has waited for them, and are spoilt until then.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
import torch

from ernie_local.config import BankKey
from ernie_local.experts.budget import GpuBudget, GpuCacheMemory
from ernie_local.experts.build import MathOn
from ernie_local.experts.device import CudaDevice, Event, PageLock, PageMemory
from ernie_local.experts.keys import UNIT_BYTES, ExpertKey
from ernie_local.experts.math import PageMath
from ernie_local.experts.readers import PageStore
from ernie_local.kernels.arguments import ABSENT_SLOT, ExpertsCall, LayerStorage
from ernie_local.model.kv_cache import KVCache
from tests.runtime.caching_allocator import CachingAllocator

Stream = Literal["computing", "copying"]
Range = tuple[int, int]  # first byte, and the one behind the last
_SPOILT = 0xA5


class RaceError(AssertionError):
    """Two pieces of work touch the same bytes in no order."""


@dataclass
class Clock:
    """The last piece of each stream's work that is surely done."""

    done: dict[Stream, int] = field(default_factory=lambda: {"computing": 0, "copying": 0})

    def learn(self, other: Clock) -> None:
        for stream, number in other.done.items():
            self.done[stream] = max(self.done[stream], number)


class FakeEvent:
    def __init__(self, gpu: FakeGpu, clock: Clock) -> None:
        self.gpu = gpu
        self.clock = clock

    def synchronize(self) -> None:
        with self.gpu.lock_of_all:
            self.gpu.num_host_waits += threading.current_thread() is threading.main_thread()
            self.gpu.known_here().learn(self.clock)
            self.gpu.carry_out(self.clock)


@dataclass
class Copy:
    number: int
    source: torch.Tensor
    into: torch.Tensor


class FakeGpu(CudaDevice):
    """A GPU with memory of the processor, of which `num_bytes` can be had."""

    def __init__(self, num_bytes: int = 1 << 40, *, leaves_gaps: bool = True) -> None:
        """leaves_gaps: whether nothing is allocated next to anything else, so that workspace lies apart."""
        self.allocator = CachingAllocator(num_bytes, leaves_gaps=leaves_gaps)
        self.num_bytes_brought = 0
        self._backing: dict[int, torch.Tensor] = {}  # of segments, by their address
        self.num_read_backs = self.num_host_waits = self.num_sent = 0
        self.lock_of_all = threading.RLock()
        self._clocks: dict[Stream, Clock] = {"computing": Clock(), "copying": Clock()}
        self._known = Clock()  # by whoever is on the host
        self._own = threading.local()  # by a thread of the host alone
        self._pending: list[Copy] = []
        # What was done last to which bytes: (range, number).
        self._written: list[tuple[Range, int]] = []
        self._read: list[tuple[Range, int]] = []
        self._sources: list[tuple[Range, int]] = []
        self.being_filled: list[Range] = []  # of the host's memory, from disk

    def lock(self, memory: PageMemory) -> PageLock:
        return PageLock("pageable", ("there is no GPU",))

    def allocate(self, num_bytes: int) -> torch.Tensor:
        block = self.allocator.allocate(num_bytes)
        self._backing = {
            one.address: self._backing[one.address]
            for one in self.allocator.segments
            if one.address in self._backing
        }
        segment = block.segment
        if segment.address not in self._backing:
            # Not by torch, whose calls may be counted.
            spoilt = np.full(segment.num_bytes, _SPOILT, dtype=np.uint8)
            self._backing[segment.address] = torch.from_numpy(spoilt)
        memory = self._backing[segment.address][block.start : block.start + num_bytes]
        weakref.finalize(memory, self.allocator.free, block)
        return memory

    def drop_unused(self) -> None:
        self.allocator.drop_unused()

    def span(self, first: torch.Tensor, num_bytes: int) -> torch.Tensor:
        start = first.data_ptr()
        whole = next(one for one in self._backing.values() if _overlap(_range(one), (start, start + 1)))
        start -= whole.data_ptr()
        return whole[start : start + num_bytes]

    def bring(self, source: torch.Tensor, into: torch.Tensor) -> None:
        self.work_in(_range(into))
        self.num_bytes_brought += source.nbytes
        into.copy_(source)

    def owns(self, memory: torch.Tensor) -> bool:
        """Whether it lies in the GPU's memory, not the host's."""
        return any(_overlap(_range(one), _range(memory)) for one in self._backing.values())

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        self.num_sent += 1
        return tensor.clone()

    def read_back(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with self.lock_of_all:
            self.num_read_backs += 1
            self._known.learn(self._now("computing"))
            self.carry_out(self._known)
        return [tensor.clone() for tensor in tensors]

    def mark(self) -> Event | None:
        with self.lock_of_all:
            return FakeEvent(self, self._now("computing"))

    def finish(self) -> None:
        with self.lock_of_all:
            for stream in self._clocks:
                self._known.learn(self._now(stream))
            self.carry_out(self._known)
            # Whatever is given from now on begins after what the host has waited for.
            for clock in self._clocks.values():
                clock.learn(self._known)

    def copy(self, source: torch.Tensor, into: torch.Tensor, after: Event | None) -> Event:
        with self.lock_of_all:
            clock = self._clocks["copying"]
            if after is not None:
                assert isinstance(after, FakeEvent)
                clock.learn(after.clock)
            for other in self.being_filled:
                if _overlap(other, _range(source)):
                    raise RaceError("copied before it was read from disk")
            _expect_done(
                self._read, _range(into), clock, "computing", "overwritten while it is computed with"
            )
            number = self._next("copying")
            self._written = [one for one in self._written if not _overlap(one[0], _range(into))]
            self._written.append((_range(into), number))
            self._sources.append((_range(source), number))
            into.fill_(_SPOILT)
            self._pending.append(Copy(number, source, into))
            return FakeEvent(self, self._now("copying"))

    def compute_after(self, event: Event) -> None:
        assert isinstance(event, FakeEvent)
        with self.lock_of_all:
            self._clocks["computing"].learn(event.clock)
            self.carry_out(event.clock)

    def compute_with(self, page: Range) -> None:
        """A kernel reads a page of the GPU."""
        with self.lock_of_all:
            number = self._next("computing")
            clock = self._clocks["computing"]
            if not any(one[0] <= page[0] and page[1] <= one[1] for one, _ in self._written):
                raise RaceError("computed with what never came")
            _expect_done(self._written, page, clock, "copying", "computed with before it was copied")
            self._read = [one for one in self._read if not _overlap(one[0], page)]
            self._read.append((page, number))

    def work_in(self, memory: Range) -> None:
        """Kernels read and write memory that is not, or no longer, of pages."""
        with self.lock_of_all:
            number = self._next("computing")
            clock = self._clocks["computing"]
            _expect_done(self._written, memory, clock, "copying", "written to while a page is copied there")
            self._read = [
                one for one in self._read if not (memory[0] <= one[0][0] and one[0][1] <= memory[1])
            ]
            self._read.append((memory, number))

    def fill(self, page: Range) -> None:
        """The host begins to read from disk into its own memory."""
        with self.lock_of_all:
            clock = Clock()
            clock.learn(self._known)
            clock.learn(self.known_here())
            _expect_done(self._sources, page, clock, "copying", "read from disk over what is being copied")
            self._sources = [one for one in self._sources if not _overlap(one[0], page)]
            self.being_filled.append(page)

    def carry_out(self, clock: Clock) -> None:
        """Move the bytes of copies that somebody has waited for."""
        while self._pending and self._pending[0].number <= clock.done["copying"]:
            copy = self._pending.pop(0)
            copy.into.copy_(copy.source)

    def known_here(self) -> Clock:
        """By this thread."""
        if not hasattr(self._own, "clock"):
            self._own.clock = Clock()
        clock: Clock = self._own.clock
        return clock

    def _next(self, stream: Stream) -> int:
        self._clocks[stream].done[stream] += 1
        return self._clocks[stream].done[stream]

    def _now(self, stream: Stream) -> Clock:
        return Clock(dict(self._clocks[stream].done))


class WatchedMath(PageMath):
    """A PageMath that tells the GPU which of its pages are read, as the places say that it was given."""

    def __init__(
        self, math: PageMath, gpu: FakeGpu, page_bytes: Mapping[ExpertKey, int], place: BankKey
    ) -> None:
        self.takes_shared_page = math.takes_shared_page
        self._math = math
        self._gpu = gpu
        self._page_bytes = page_bytes
        self._place = place

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        assert call.places is not None
        start = call.slots.data_ptr()
        for expert_id in call.expert_ids.unique().tolist() if self._gpu.owns(call.slots) else ():
            place = int(call.places[expert_id])
            if place != ABSENT_SLOT:
                first = start + place * UNIT_BYTES
                pages = [ExpertKey(*self._place, expert_id, small) for small in (False, True)]
                # Either may lie there, if the expert has two.
                num_bytes = min(self._page_bytes[key] for key in pages if key in self._page_bytes)
                self._gpu.compute_with((first, first + num_bytes))
        self._math.add(output, call)


def watched_math(math_on: MathOn, gpu: FakeGpu, page_bytes: Mapping[ExpertKey, int]) -> MathOn:
    """What `math_on` gives, seen by the GPU where it reads the GPU's memory."""
    return lambda device: {
        place: WatchedMath(math, gpu, page_bytes, place) for place, math in math_on(device).items()
    }


def watch(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the GPU see what is read from disk into the memory below, and where caches lie."""
    _watch_caches(gpu, monkeypatch)
    read = PageStore.read

    def watched(self: PageStore, key: ExpertKey, into: torch.Tensor) -> None:
        with _filled(gpu, _range(into)):
            read(self, key, into)

    monkeypatch.setattr(PageStore, "read", watched)


def _watch_caches(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows are moved to, and where each layer attends."""
    resize, append, storage = GpuBudget.resize_cache, KVCache.append, KVCache.storage

    def watched_resize(self: GpuBudget, cache: GpuCacheMemory, num_bytes: int) -> torch.Tensor:
        memory = resize(self, cache, num_bytes)
        gpu.work_in(_range(memory))
        return memory

    def work_in_layer(cache: KVCache, layer_id: int) -> None:
        for rows in storage(cache, layer_id):
            if rows is not None:
                gpu.work_in(_range(rows))

    def watched_append(
        self: KVCache, layer_id: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        work_in_layer(self, layer_id)
        return append(self, layer_id, keys, values)

    def watched_storage(self: KVCache, layer_id: int) -> LayerStorage:
        work_in_layer(self, layer_id)
        return storage(self, layer_id)

    monkeypatch.setattr(GpuBudget, "resize_cache", watched_resize)
    monkeypatch.setattr(KVCache, "append", watched_append)
    monkeypatch.setattr(KVCache, "storage", watched_storage)


@contextmanager
def _filled(gpu: FakeGpu, page: Range) -> Iterator[None]:
    gpu.fill(page)
    try:
        yield
    finally:
        gpu.being_filled.remove(page)


def _range(tensor: torch.Tensor) -> Range:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes


def _overlap(one: Range, other: Range) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _expect_done(
    before: list[tuple[Range, int]], page: Range, clock: Clock, stream: Stream, otherwise: str
) -> None:
    for other, number in before:
        if _overlap(other, page) and number > clock.done[stream]:
            raise RaceError(f"{otherwise}: {stream} {number}, {clock.done[stream]} are known to be done")
