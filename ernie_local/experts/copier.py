"""Copies pages from RAM to a GPU, each after it has been read from disk.

The host waits for the disk alone, never for the GPU: computing with a page waits on the GPU for its copy, and
a slot of either memory is overwritten only after the GPU has used it (`LastUses` in level.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from ernie_local.experts.device import Event, GpuDevice
from ernie_local.experts.disk import DiskReader
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.level import PageLevel


class PageCopier:
    """A PageReader from RAM to a GPU, of pages that are pinned in RAM."""

    def __init__(self, upper: PageLevel, lower: PageLevel, disk: DiskReader, gpu: GpuDevice) -> None:
        """disk: what fills the lower level. gpu: where the upper one is."""
        self.waited_seconds = 0.0
        self._upper = upper
        self._lower = lower
        self._disk = disk
        self._gpu = gpu
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ernie-copy")
        # Of each page: where it lies below, and its copy once that has been begun.
        self._copies: dict[ExpertKey, tuple[tuple[int, int], Future[Event]]] = {}

    def start(self, key: ExpertKey) -> None:
        """Copy a page when it has been read below and the GPU has used what lay in its slot."""
        source, into = self._lower.page(key), self._upper.page(key)
        after = self._upper.last_uses.find(*self._upper.range(key))
        reading = self._disk.reading(key)
        if reading is None:
            # It is in RAM: a thread would cost more than the call.
            copying: Future[Event] = Future()
            copying.set_result(self._gpu.copy(source, into, after))
        else:
            copying = self._thread.submit(self._copy, reading, source, into, after)
        self._copies[key] = (self._lower.range(key), copying)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """Return when work given to the GPU from now on finds these pages. ModelUnusable as from the disk.

        Only the GPU may use them then: the copies may still be under way.
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

    def abort(self) -> None:
        """Return when no page is in flight any more."""
        wait([copying for _, copying in self._copies.values()])
        self._copies.clear()
        self._gpu.finish()

    def close(self) -> None:
        """End the thread. Nothing is in flight."""
        self._thread.shutdown()

    def _copy(
        self, reading: Future[None], source: torch.Tensor, into: torch.Tensor, after: Event | None
    ) -> Event:
        reading.result()
        return self._gpu.copy(source, into, after)
