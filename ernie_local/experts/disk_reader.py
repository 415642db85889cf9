"""Pages read from disk on threads of their own, each straight into the slot that it has.

Owns the threads and the seconds that somebody waited for them. Which page is read when is page_traffic.py's,
how a page is read and known to be right page_store.py's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from ernie_local.experts.device import Event
from ernie_local.experts.heat import ExpertKey
from ernie_local.experts.page_level import PageLevel
from ernie_local.experts.page_store import PageStore

# Reads under way at a time: one keeps a solid-state disk busy at pages of megabytes, a few hide its pauses.
_READERS = 4


class DiskReader:
    """A PageReader from a store into a level's memory."""

    def __init__(self, store: PageStore, level: PageLevel) -> None:
        self.store = store
        self.waited_seconds = 0.0
        self._level = level
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="ernie-page")
        self._readings: dict[ExpertKey, Future[None]] = {}  # pages on their way

    def start(self, key: ExpertKey) -> None:
        """See PageReader.start."""
        last_use = self._level.last_uses.find(*self._level.range(key))
        self._readings[key] = self._threads.submit(self._read, key, self._level.page(key), last_use)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """See PageReader.wait. ModelUnusable for a page that cannot be read."""
        before = time.perf_counter()
        for key in keys:
            self._readings[key].result()
        for key in keys:
            del self._readings[key]
        self.waited_seconds += time.perf_counter() - before

    def abandon(self) -> None:
        """See PageReader.abandon."""
        wait(list(self._readings.values()))
        self._readings.clear()

    def reading(self, key: ExpertKey) -> Future[None] | None:
        """What ends when the page is there; None for one that was not started or has been waited for."""
        return self._readings.get(key)

    def close(self) -> None:
        """End the threads, close the files. Nothing is on its way any more."""
        self._threads.shutdown()
        self.store.close()

    def _read(self, key: ExpertKey, into: torch.Tensor, last_use: Event | None) -> None:
        if last_use is not None:
            # What lay there may still be on its way to a GPU.
            last_use.synchronize()
        self.store.read(key, into)
