"""Where each expert's page lies on disk, and how it is read and known to be right.

Owns the comparison of what was read with what belongs there: the first time by the page itself, later by what
was read before. Knows nothing of slots or of who wants the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import xxhash

from ernie_local.checkpoint.uncached_file import UncachedFile
from ernie_local.errors import ModelUnusable
from ernie_local.experts.heat import ExpertKey


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
