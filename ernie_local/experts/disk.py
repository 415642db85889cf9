"""Reads pages of experts from disk and checks them, on threads of their own.

The first time, a page is checked by what its own header says; later its checksum must be what it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from ernie_local.checkpoint.uncached_file import UncachedFile
from ernie_local.errors import ModelUnusable
from ernie_local.experts.device import Event
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.level import PageLevel

# Reads in flight at a time: one keeps a solid-state disk busy at pages of megabytes, a few hide its pauses.
_READERS = 4
# Looks at a page, (page_bytes,) uint8, that is read for the first time. Raises ModelUnusable, with the page's
# name, for one that cannot be right.
PageCheck = Callable[[ExpertKey, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class PageRange:
    """An unbroken part of a page: its place in a file and in the page."""

    path: Path
    offset: int
    page_offset: int
    num_bytes: int


class PageStore:
    """The pages of all routed experts of a checkpoint. Several threads may read at the same time."""

    def __init__(self, ranges: Mapping[ExpertKey, tuple[PageRange, ...]], check: PageCheck) -> None:
        """ranges: of each page; together they fill it."""
        self.page_bytes = {key: sum(part.num_bytes for part in parts) for key, parts in ranges.items()}
        self._ranges = ranges
        self._check = check
        paths = dict.fromkeys(part.path for parts in ranges.values() for part in parts)
        self._files = {path: UncachedFile(path) for path in paths}
        self._known: dict[ExpertKey, int] = {}

    @property
    def is_direct(self) -> bool:
        """Whether pages are read without a copy in the system's page cache."""
        return all(file.is_direct for file in self._files.values())

    @property
    def paths(self) -> list[Path]:
        """The files that pages lie in."""
        return list(self._files)

    @property
    def checked(self) -> list[ExpertKey]:
        """Pages that have been read and checked, in the order in which they were first read."""
        return list(self._known)

    def locate(self, key: ExpertKey) -> tuple[PageRange, ...]:
        """Where the page lies in the files."""
        return self._ranges[key]

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
            # A bit may have flipped on the way from the disk: read again before the file is blamed.
            if attempt:
                assert known is not None, "what is no page has been refused"
                raise self._changed(key, known, found)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

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

    def _changed(self, key: ExpertKey, known: int, found: int) -> ModelUnusable:
        part = self._ranges[key][0]
        return ModelUnusable(
            f"{part.path}: the page of {key.bank} expert {key.expert_id} in layer {key.layer_id}, at byte "
            f"{part.offset}, has the checksum {found:016x}, it had {known:016x} before",
            "the file was changed while the model was running, or the disk is failing",
            "run `ernie-local verify` on the checkpoint, then start again",
        )


class DiskReader:
    """A PageReader from a store into a level's memory."""

    def __init__(self, store: PageStore, level: PageLevel) -> None:
        self.store = store
        self.waited_seconds = 0.0
        self._level = level
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="ernie-page")
        self._reads: dict[ExpertKey, Future[None]] = {}

    def start(self, key: ExpertKey) -> None:
        """Begin to read a page into its slot, once a GPU has copied what lay there."""
        last_use = self._level.last_uses.find(*self._level.range(key))
        self._reads[key] = self._threads.submit(self._read, key, self._level.page(key), last_use)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """Return when all of these pages have been read. ModelUnusable for a page that cannot be read."""
        before = time.perf_counter()
        for key in keys:
            self._reads[key].result()
        for key in keys:
            del self._reads[key]
        self.waited_seconds += time.perf_counter() - before

    def abort(self) -> None:
        """Return when no page is in flight any more."""
        wait(list(self._reads.values()))
        self._reads.clear()

    def reading(self, key: ExpertKey) -> Future[None] | None:
        """Ends when the page has been read. None for a page that was not started, or was waited for."""
        return self._reads.get(key)

    def close(self) -> None:
        """End the threads and close the files. Nothing is in flight."""
        self._threads.shutdown()
        self.store.close()

    def _read(self, key: ExpertKey, into: torch.Tensor, last_use: Event | None) -> None:
        if last_use is not None:
            last_use.synchronize()
        self.store.read(key, into)
