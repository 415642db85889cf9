"""Reads a file without leaving a copy in the system's page cache.

Reads are direct where the system supports it; elsewhere the cached copy is dropped at once.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from pathlib import Path

from ernie_local.errors import ModelUnusable
from ernie_local.files import open_descriptor

# Of offsets, sizes and addresses of direct reads; enough for all common file systems.
ALIGNMENT = 4096
DOWNLOAD_AGAIN = "download this file again, and compare its checksum with the one published"


class UncachedFile:
    """A file that is open until `close`. Threads may read at the same time."""

    def __init__(self, path: Path) -> None:
        """ModelUnusable for a file that cannot be opened."""
        self.path = path
        self._lock = threading.Lock()
        try:
            self._descriptor = open_descriptor(path)
        except OSError as error:
            raise _unreadable(path, 0, error) from error
        self._direct = _open_direct(path, os.fstat(self._descriptor).st_size)

    @property
    def is_direct(self) -> bool:
        """Whether aligned ranges are read directly."""
        return self._direct is not None

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`, writable bytes, from `offset` on.

        The read is direct where offset, size and address are multiples of ALIGNMENT. ModelUnusable for a file
        that ends too early or a disk that fails.
        """
        start, wanted = offset, len(into)
        direct = self._direct if offset % ALIGNMENT == wanted % ALIGNMENT == 0 else None
        descriptor = self._descriptor if direct is None else direct
        try:
            while into:
                count = os.preadv(descriptor, [into], offset)
                if count == 0:
                    raise ModelUnusable(
                        f"{self.path}: {wanted} bytes at {start} were requested, the file ends at {offset}",
                        "the file became shorter while it was read",
                        DOWNLOAD_AGAIN,
                    )
                into, offset = into[count:], offset + count
                # After a short read, the rest may not be aligned.
                if offset % ALIGNMENT:
                    descriptor = self._descriptor
        except OSError as error:
            raise _unreadable(self.path, offset, error) from error
        if direct is None:
            drop_cached(self._descriptor, start, wanted)

    def close(self) -> None:
        """Close the file; may be called again."""
        with self._lock:
            descriptors = (self._descriptor, self._direct)
            self._descriptor, self._direct = -1, None
        for descriptor in descriptors:
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)


def drop_cached(descriptor: int, offset: int, num_bytes: int) -> None:
    """Drop these bytes of a file from the system's cache; `num_bytes` 0 means up to its end."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # file systems without a page cache refuse it
            os.posix_fadvise(descriptor, offset, num_bytes, os.POSIX_FADV_DONTNEED)


def _open_direct(path: Path, file_bytes: int) -> int | None:
    """A descriptor for direct reads, tried once; None where the system or the file system has none."""
    if not hasattr(os, "O_DIRECT") or file_bytes < ALIGNMENT:
        return None
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, ALIGNMENT) as page:
            os.preadv(descriptor, [page], 0)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _unreadable(path: Path, offset: int, error: OSError) -> ModelUnusable:
    return ModelUnusable(
        f"{path} cannot be read at byte {offset}",
        error.strerror or str(error),
        "check the disk and its cable or network",
    )
