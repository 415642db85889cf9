"""Memory that a GPU reads on its own, or at least one that is never swapped: as much of that as can be had.

Three steps down, each of which says its name: page-locked by CUDA, locked by the system, neither. From the
last two copies to a GPU pass through a buffer of the driver, and whoever starts one waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

LockStep = Literal["pinned", "locked", "pageable"]
# Registers and frees memory by address and bytes; what went wrong, or None.
Register = Callable[[int, int], str | None]


@dataclass(frozen=True, slots=True)
class PageLock:
    """step: what was reached; reasons: why no higher one was, in the order in which they were tried."""

    step: LockStep
    reasons: tuple[str, ...] = ()

    def describe(self) -> str:
        """For people."""
        names = {
            "pinned": "page-locked for the GPU",
            "locked": "locked, not page-locked for the GPU: copies are slower",
            "pageable": "neither page-locked nor locked: copies are slower, and the system may swap it",
        }
        return "; ".join((names[self.step], *self.reasons))


def lock_pages(memory: torch.Tensor, pin: Register, lock: Register) -> PageLock:
    """Page-lock all bytes of `memory`, uint8 on the CPU, by the best of the two that succeeds."""
    address, num_bytes = memory.data_ptr(), memory.nbytes
    refusal = pin(address, num_bytes)
    if refusal is None:
        return PageLock("pinned")
    reasons = (f"CUDA page-locks no {num_bytes} bytes ({refusal})",)
    refusal = lock(address, num_bytes)
    if refusal is None:
        return PageLock("locked", reasons)
    return PageLock("pageable", (*reasons, f"the system locks no {num_bytes} bytes ({refusal})"))


def pin_by_cuda(address: int, num_bytes: int) -> str | None:
    """Register memory with CUDA. Under WSL and Windows a driver gives half of RAM, or less than 1 GiB."""
    code = int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, 0))
    if code == 0:
        return None
    # CUDA tells its last error to whoever looks next, which shall not be somebody's kernel.
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
    return f"error {code}"


def unpin_by_cuda(address: int) -> None:
    """Undo `pin_by_cuda`, before the memory goes back to the system."""
    torch.cuda.cudart().cudaHostUnregister(address)


def lock_by_system(address: int, num_bytes: int) -> str | None:
    """`mlock`, within the limit that `ulimit -l` shows. Where there is no such call, that is said."""
    try:
        mlock = ctypes.CDLL(None, use_errno=True).mlock
    except (AttributeError, OSError, TypeError):  # Windows takes no None
        return "there is no mlock"
    mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    if mlock(address, num_bytes) == 0:
        return None
    code = ctypes.get_errno()
    hint = ", see ulimit -l" if code in (errno.ENOMEM, errno.EPERM, errno.EAGAIN) else ""
    return f"{os.strerror(code)}{hint}"
