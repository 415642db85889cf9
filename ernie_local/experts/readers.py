"""Brings pages of experts into memory on threads: from disk into RAM, and from RAM to a GPU.

The host waits for the disk alone, never for the GPU: computing with a page waits on the GPU for its copy, and
a slot is overwritten only after the GPU has used it (`LastUses` in level.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import xxhash

from ernie_local.checkpoint.uncached_file import UncachedFile
from ernie_local.errors import ModelUnusable
from ernie_local.experts.device import CudaDevice, Event
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.level import PageLevel

# Reads in flight at a time: one keeps a solid-state disk busy at pages of megabytes, a few hide its pauses.
_READERS = 4
_Result = TypeVar("_Result")
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
        self.ranges = ranges
        self.checksums: dict[ExpertKey, int] = {}  # of the pages that have been read and checked
        self._check = check
        paths = dict.fromkeys(part.path for parts in ranges.values() for part in parts)
        self._files = {path: UncachedFile(path) for path in paths}

    @property
    def is_direct(self) -> bool:
        """Whether pages are read without a copy in the system's page cache."""
        return all(file.is_direct for file in self._files.values())

    @property
    def paths(self) -> list[Path]:
        """The files that pages lie in."""
        return list(self._files)

    def read(self, key: ExpertKey, into: torch.Tensor) -> None:
        """Fill `into`, (page_bytes,) uint8 on the CPU, with the page.

        ModelUnusable for a file that ends too early, a disk that fails, or bytes that are not the page's.
        """
        self._fill(key, into)
        try:
            self._verify(key, into)
        except ModelUnusable:
            # A bit may have flipped on the way from the disk: read again before the file is blamed.
            self._fill(key, into)
            self._verify(key, into)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _fill(self, key: ExpertKey, into: torch.Tensor) -> None:
        view = into.numpy().data
        for part in self.ranges[key]:
            self._files[part.path].read(part.offset, view[part.page_offset :][: part.num_bytes])

    def _verify(self, key: ExpertKey, page: torch.Tensor) -> None:
        """ModelUnusable unless the page is right by its own header, or is what it was the first time."""
        if key not in self.checksums:
            self._check(key, page)
        found = xxhash.xxh3_64_intdigest(page.numpy().data)
        known = self.checksums.setdefault(key, found)
        if found != known:
            part = self.ranges[key][0]
            raise ModelUnusable(
                f"{part.path}: the page of {key.bank} expert {key.expert_id} in layer {key.layer_id}, at "
                f"byte {part.offset}, has the checksum {found:016x}, it had {known:016x} before",
                "the file was changed while the model was running, or the disk is failing",
                "run `ernie-local verify` on the checkpoint, then start again",
            )


def _give(threads: ThreadPoolExecutor, ended: Future[_Result], work: Callable[[], _Result]) -> None:
    """Have a thread do `work` unless `ended` has been cancelled by then.

    `ended` is known before: of one that `submit` gives back, nobody knows where Ctrl-C comes just then, and
    the page would be read into a slot that holds another one by now.
    """

    def run() -> None:
        if ended.set_running_or_notify_cancel():
            try:
                ended.set_result(work())
            except BaseException as error:
                ended.set_exception(error)
                raise

    threads.submit(run)


def _end_all(works: dict[ExpertKey, Future[_Result]]) -> None:
    """Return when none of them is being done, or will be."""
    wait([ended for ended in works.values() if not ended.cancel()])
    works.clear()


class DiskReader:
    """A PageReader from a store into a level's memory."""

    def __init__(self, store: PageStore, level: PageLevel) -> None:
        self.waited_seconds = 0.0
        self._store = store
        self._level = level
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="ernie-page")
        self._reads: dict[ExpertKey, Future[None]] = {}

    def start(self, key: ExpertKey) -> None:
        """Begin to read a page into its slot, once a GPU has copied what lay there."""
        last_use = self._level.last_uses.find(*self._level.range(key))
        self._reads[key] = ended = Future[None]()
        _give(self._threads, ended, partial(self._read, key, self._level.page(key), last_use))

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
        _end_all(self._reads)

    def reading(self, key: ExpertKey) -> Future[None] | None:
        """Ends when the page has been read. None for a page that was not started, or was waited for."""
        return self._reads.get(key)

    def close(self) -> None:
        """End the threads and close the files. Nothing is in flight."""
        self._threads.shutdown()
        self._store.close()

    def _read(self, key: ExpertKey, into: torch.Tensor, last_use: Event | None) -> None:
        if last_use is not None:
            last_use.synchronize()
        self._store.read(key, into)


class PageCopier:
    """A PageReader from RAM to a GPU, of pages that are pinned in RAM until they have been waited for."""

    def __init__(self, upper: PageLevel, lower: PageLevel, disk: DiskReader, gpu: CudaDevice) -> None:
        """disk: what fills the lower level. gpu: where the upper one is."""
        self.waited_seconds = 0.0
        self._upper = upper
        self._lower = lower
        self._disk = disk
        self._gpu = gpu
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ernie-copy")
        self._copies: dict[ExpertKey, Future[Event]] = {}  # each ends when the copy has begun

    def start(self, key: ExpertKey) -> None:
        """Copy a page when it has been read below and the GPU has used what lay in its slot."""
        source, into = self._lower.page(key), self._upper.page(key)
        after = self._upper.last_uses.find(*self._upper.range(key))
        reading = self._disk.reading(key)
        self._copies[key] = copying = Future[Event]()
        if reading is None:
            # It is in RAM: a thread would cost more than the call.
            copying.set_result(self._gpu.copy(source, into, after))
        else:
            _give(self._thread, copying, partial(self._copy, reading, source, into, after))

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        """Return when work given to the GPU from now on finds these pages. ModelUnusable as from the disk.

        Only the GPU may use them then: the copies may still be under way.
        """
        before = time.perf_counter()
        for key in keys:
            self._copies[key].result()
        for key in keys:
            event = self._copies.pop(key).result()
            self._gpu.compute_after(event)
            self._lower.last_uses.note([self._lower.range(key)], event)
        self.waited_seconds += time.perf_counter() - before

    def abort(self) -> None:
        """Return when no page is in flight any more."""
        _end_all(self._copies)
        self._gpu.finish()

    def close(self) -> None:
        """End the thread. Nothing is in flight."""
        self._thread.shutdown()

    def _copy(
        self, reading: Future[None], source: torch.Tensor, into: torch.Tensor, after: Event | None
    ) -> Event:
        reading.result()
        return self._gpu.copy(source, into, after)
