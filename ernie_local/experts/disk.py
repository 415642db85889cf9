"""Reads pages of experts from disk and checks them, on threads of their own.

The first time, a page is checked by what its own header says; later its checksum must be what it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import xxhash

from ernie_local.checkpoint.uncached_file import UncachedFile
from ernie_local.errors import ModelUnusable
from ernie_local.experts.device import Event
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.level import PageLevel


@dataclass(frozen=True, slots=True)
class PageRange:
    """An unbroken part of a page: its place in a file and in the page."""

    path: Path
    offset: int
    page_offset: int
    num_bytes: int


class PageCheck(Protocol):
    """Looks at a page that is read for the first time."""

    def __call__(self, key: ExpertKey, page: torch.Tensor) -> None:
        """page: (page_bytes,) uint8. Raises ModelUnusable, naming the page, for one that cannot be right."""
        ...


class PageStore:
    """The pages of all routed experts of a checkpoint. Threads may read at the same time."""

    def __init__(self, ranges: Mapping[ExpertKey, tuple[PageRange, ...]], check: PageCheck) -> None:
        """ranges: of each page; together they fill it."""
        self._ranges = ranges
        self._check = check
        paths = dict.fromkeys(part.path for parts in ranges.values() for part in parts)
        self._files = {path: UncachedFile(path) for path in paths}
        self._known: dict[ExpertKey, int] = {}

    @property
    def is_direct(self) -> bool:
        """Whether pages come without a copy in the system's page cache."""
        return all(file.is_direct for file in self._files.values())

    @property
    def paths(self) -> list[Path]:
        """The files that pages lie in."""
        return list(self._files)

    def page_bytes(self, key: ExpertKey) -> int:
        """Bytes of the page."""
        return sum(part.num_bytes for part in self._ranges[key])

    @property
    def experts(self) -> list[ExpertKey]:
        """All that have a page."""
        return list(self._ranges)

    def read(self, key: ExpertKey, into: torch.Tensor) -> None:
        """Fill `into`, (page_bytes,) uint8 on the CPU, with the page.

        ModelUnusable for a file that ends too early, a disk that fails, or bytes that are not the page's.
        """
        view = into.numpy().data
        for attempt in range(2):
            for part in self._ranges[key]:
                end = part.page_offset + part.num_bytes
                self._files[part.path].read(part.offset, view[part.page_offset : end])
            found = xxhash.xxh3_64_intdigest(view)
            known = self._known.setdefault(key, found) if self._is_page(key, into, attempt) else None
            if found == known:
                return
            # A bit may have turned on its way from the disk: once more, before the file is blamed.
            if attempt:
                assert known is not None, "what is no page has been refused"
                raise self._changed(key, known, found)

    def _is_page(self, key: ExpertKey, page: torch.Tensor, attempt: int) -> bool:
        """Whether a page that was never read before can be right; refused at the second attempt."""
        if key in self._known:
            return True
        try:
            self._check(key, page)
        except ModelUnusable:
            if attempt:
                raise
            return False
        return True

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _changed(self, key: ExpertKey, known: int, found: int) -> ModelUnusable:
        part = self._ranges[key][0]
        return ModelUnusable(
            f"{part.path}: the page of {key.bank} expert {key.expert_id} in layer {key.layer_id}, at byte "
            f"{part.offset}, has the checksum {found:016x}, it had {known:016x} before",
            "the file was changed while it was in use, or the disk fails",
            "run `ernie-local verify` on the checkpoint, then start again",
        )


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
