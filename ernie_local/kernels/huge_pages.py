"""Memory for weights that are streamed: in huge pages where the system gives them.

With 4 KiB pages a stream asks for a new translation, and the hardware's prefetchers stop, every 4 KiB.
"""

from __future__ import annotations

import contextlib
import mmap

import torch

from ernie_local.sizes import HUGE_PAGE


def empty_bytes(num_bytes: int) -> torch.Tensor:
    """(num_bytes,) uint8, zeros, not yet backed by memory; starts at a multiple of 2 MiB where that helps.

    A wish, not a demand: without huge pages the system gives small ones. MemoryError if it gives none.
    """
    if num_bytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(num_bytes, dtype=torch.uint8, device="cpu")
    # The tensor keeps the mapping alive, and the mapping ends with it.
    try:
        mapping = mmap.mmap(-1, num_bytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{num_bytes} bytes of memory: {error.strerror}") from error
    with contextlib.suppress(OSError):  # a kernel built without them
        mapping.madvise(mmap.MADV_HUGEPAGE)
    everything = torch.frombuffer(mapping, dtype=torch.uint8)
    start = -everything.data_ptr() % HUGE_PAGE
    return everything[start : start + num_bytes]
