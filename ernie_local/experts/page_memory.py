"""The memory that pages lie in: one allocation, aligned for direct reads, parts of which can be handed back.

Knows nothing of what lies where.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys

from ernie_local.kernels.memory import map_bytes

UNIT_BYTES = 4096  # pages begin at multiples of it


class PageMemory:
    """`units`: (units, UNIT_BYTES) uint8, backed by real memory from the first write on."""

    def __init__(self, num_bytes: int) -> None:
        """num_bytes: a multiple of UNIT_BYTES. MemoryError if the system gives none."""
        assert num_bytes % UNIT_BYTES == 0, num_bytes
        self._mapping, self.bytes = map_bytes(num_bytes)
        self.units = self.bytes.view(-1, UNIT_BYTES)

    @property
    def num_bytes(self) -> int:
        """Of the whole allocation, handed back or not."""
        return self.bytes.nbytes

    def hand_back(self, offset: int, num_bytes: int) -> None:
        """Let the system have this range, multiples of UNIT_BYTES; it reads as zeros until it is written."""
        self._mapping.madvise(mmap.MADV_DONTNEED, int(self.bytes.storage_offset()) + offset, num_bytes)


def trim_heap() -> None:
    """Let the system have what the allocator keeps of freed memory, where there is a call for it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
