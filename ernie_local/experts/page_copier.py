"""Pages copied from a memory of the processor into another one, on a thread, after their reading has ended.

The memory that is copied into stands for that of a GPU. Owns the thread and the seconds that were waited.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from ernie_local.experts.disk_reader import DiskReader
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.page_level import PageLevel


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
