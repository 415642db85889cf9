"""Maps a file of weights into memory: the bytes of the system's page cache, shared with other processes.

A file that is replaced or deleted stays as it was. One that is cut short in place ends the process (SIGBUS)
when a lost part is used; `fetch_mapped` finds that without harm, and so does `MappedFile.check_unchanged`.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ernie_local.checkpoint.header import StoredTensor
from ernie_local.checkpoint.uncached_file import DOWNLOAD_AGAIN
from ernie_local.errors import ModelUnusable
from ernie_local.files import open_descriptor

_POPULATE_READ = 22  # MADV_POPULATE_READ, since Linux 5.14; Python's mmap has no name for it


class _Status(NamedTuple):
    num_bytes: int
    changed_ns: int


class MappedFile:
    """A file that stays mapped for as long as tensors from it are in use.

    content: (bytes of the file,) uint8, which must not be written to.
    """

    def __init__(self, path: Path) -> None:
        """OSError for a file that cannot be mapped."""
        self._path = path
        self._descriptor = open_descriptor(path)
        weakref.finalize(self, os.close, self._descriptor)
        self._status = self._look()
        try:
            self.content = _map(self._descriptor)
        except (OSError, ValueError) as error:  # the latter of an empty file
            raise OSError(f"{path} cannot be mapped into memory: {error}") from error

    def check_unchanged(self) -> None:
        """Raise ModelUnusable if the file was written to, or cut short, since it was mapped."""
        found = self._look()
        if found != self._status:
            raise ModelUnusable(
                f"{self._path} has {found.num_bytes} bytes and was changed at {found.changed_ns / 1e9:.3f} s "
                f"(since 1970), it had {self._status.num_bytes} from {self._status.changed_ns / 1e9:.3f} s",
                "the model computes from this file, which was written to in the meantime",
                "run `ernie-local verify` on the checkpoint, then start again",
            )

    def _look(self) -> _Status:
        status = os.fstat(self._descriptor)
        return _Status(status.st_size, status.st_mtime_ns)


class MappedFiles:
    """Files that are mapped when they are first asked for. notes: lines on what could not be."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._files: dict[Path, MappedFile] = {}

    def content(self, tensors: Collection[StoredTensor]) -> Tensor:
        """All bytes of the file that these tensors, at least one, lie in.

        OSError where they lie in several files, or it cannot be mapped. ModelUnusable for a file that has
        become too short for them.
        """
        paths = {tensor.path for tensor in tensors}
        if len(paths) > 1:
            raise OSError(f"they lie in {len(paths)} files")
        (path,) = paths
        if path not in self._files:
            self._files[path] = MappedFile(path)
        content = self._files[path].content
        last = max(tensors, key=lambda tensor: tensor.offset)
        if (end := last.offset + last.num_bytes) > len(content):
            raise ModelUnusable(
                f"{last} should reach byte {end}, the file ends at byte {len(content)}",
                "the file became shorter while it was read",
                DOWNLOAD_AGAIN,
            )
        return content

    def check_unchanged(self) -> None:
        """As `MappedFile.check_unchanged`, of all of them."""
        for file in self._files.values():
            file.check_unchanged()


def _map(descriptor: int) -> Tensor:
    mapping = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # File systems that can (xfs, ext4 since Linux 6.16) then read whole huge pages, and all read faster.
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    view = np.frombuffer(mapping, dtype=np.uint8)  # keeps the mapping alive
    content = (ctypes.c_uint8 * len(view)).from_address(view.ctypes.data)
    content.view = view  # type: ignore[attr-defined]
    # Not from the view itself: torch warns of memory that cannot be written to.
    return torch.frombuffer(content, dtype=torch.uint8)


def fetch_mapped(part: Tensor) -> bool:
    """Bring the bytes of `part`, contiguous in a MappedFile, into memory; the GIL is released meanwhile.

    False where the system cannot, or the file or the disk cannot give them: a read will tell.
    """
    if sys.platform != "linux":
        return False
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = part.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    code: int = advise(start, part.data_ptr() + part.nbytes - start, _POPULATE_READ)
    return code == 0
