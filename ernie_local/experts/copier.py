"""Copies pages from RAM to a GPU, each after it has been read from disk.

The host waits for the disk alone, never for the GPU: computing with a page waits on the GPU for its copy, and
a slot of either memory is overwritten only after the GPU has used it (`LastUses` in level.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from ernie_local.experts.device import Event, Gpu
from ernie_local.experts.disk import DiskReader
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.level import PageLevel


class GpuCopier:
    """A PageReader between RAM and a GPU, of pages that RAM holds."""

    def __init__(
        self,
        upper: PageLevel,
        lower: PageLevel,
        disk: DiskReader,
        gpu: Gpu,
    ) -> None:
        """disk: what fills the lower level. GPU: where the upper one is."""
        self.waited_seconds = 0.0
        self._upper = upper
        self._lower = lower
        self._disk = disk
        self._gpu = gpu
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ernie-copy")
        # Of each page: where it lies below, and the copy once it has been begun.
        self._copies: dict[ExpertKey, tuple[tuple[int, int], Future[Event]]] = {}

    def start(self, key: ExpertKey) -> None:
        """See PageReader.start."""
        source, into = self._lower.page(key), self._upper.page(key)
        after = self._upper.last_uses.find(*self._upper.range(key))
        reading = self._disk.reading(key)
        if reading is None:
            # It is there: a thread would cost more than the call.
            copying: Future[Event] = Future()
            copying.set_result(self._gpu.copy(source, into, after))
        else:
            copying = self._thread.submit(self._copy, reading, source, into, after)
        self._copies[key] = (self._lower.range(key), copying)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """See PageReader.wait. ModelUnusable for a page that cannot be read.

        For the GPU's own work: whoever else reads the slot has to wait for the GPU.
        """
        before = time.perf_counter()
        for key in keys:
            self._copies[key][1].result()
        for key in keys:
            source_range, copying = self._copies.pop(key)
            event = copying.result()
            self._gpu.compute_after(event)
            self._lower.last_uses.note([source_range], event)
        self.waited_seconds += time.perf_counter() - before

    def abandon(self) -> None:
        """See PageReader.abandon."""
        wait([copying for _, copying in self._copies.values()])
        self._copies.clear()
        self._gpu.finish()

    def close(self) -> None:
        """End the thread. Nothing is on its way any more."""
        self._thread.shutdown()

    def _copy(
        self, reading: Future[None], source: torch.Tensor, into: torch.Tensor, after: Event | None
    ) -> Event:
        reading.result()
        return self._gpu.copy(source, into, after)


class PageCopier:
    """A PageReader between two levels, of pages that the lower one holds."""

    def __init__(self, upper: PageLevel, lower: PageLevel, disk: DiskReader) -> None:
        """disk: what fills the lower level."""
        self.waited_seconds = 0.0
        self._upper = upper
        self._lower = lower
        self._disk = disk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ernie-copy")
        self._copies: dict[ExpertKey, Future[None]] = {}

    def start(self, key: ExpertKey) -> None:
        """See PageReader.start."""
        source, into = self._lower.page(key), self._upper.page(key)
        self._copies[key] = self._thread.submit(_copy, self._disk.reading(key), source, into)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """See PageReader.wait. ModelUnusable for a page that cannot be read."""
        before = time.perf_counter()
        for key in keys:
            self._copies[key].result()
        for key in keys:
            del self._copies[key]
        self.waited_seconds += time.perf_counter() - before

    def abandon(self) -> None:
        """See PageReader.abandon."""
        wait(list(self._copies.values()))
        self._copies.clear()

    def close(self) -> None:
        """End the thread. Nothing is on its way any more."""
        self._thread.shutdown()


def _copy(reading: Future[None] | None, source: torch.Tensor, into: torch.Tensor) -> None:
    if reading is not None:
        reading.result()
    into.copy_(source)
