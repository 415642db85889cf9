"""How much memory may be page-locked, so that a GPU reads it on its own and the system never swaps it.

Without a GPU that is the process's limit; with one, what its driver really gives, tried out.
"""

from __future__ import annotations

import torch

from ernie_local.planner.free_memory import free_memory
from ernie_local.sizes import GIB

# More than this is never asked for at a time: a driver that gives it will give more.
_MOST_TRIED = 4 * GIB
_FIRST_TRIED = 64 << 20


def locked_limit() -> int | None:
    """Bytes that this process may lock; None where there is no limit, or the system tells of none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft in (resource.RLIM_INFINITY, -1) else soft


def pinned_quota() -> int:
    """Bytes that the GPU's driver locks in one piece, at most 4 GiB or a fourth of what is free.

    Only with CUDA. Found by asking for ever more; everything is given back.
    """
    most = min(_MOST_TRIED, free_memory() // 4)
    given, wanted = 0, min(_FIRST_TRIED, most)
    while wanted > given:
        try:
            torch.empty(wanted, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the driver refuses
            break
        given, wanted = wanted, min(2 * wanted, most)
    return given
