"""Allocates the memory that pages lie in: RAM, part of which can go back to the system, and a GPU's.

RAM that a GPU copies from is page-locked by CUDA, else locked by the system, else neither. Without
page-locking, copies pass through a buffer of the driver, and the thread that starts one waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ernie_local.errors import DoesNotFit, parameter
from ernie_local.experts.keys import UNIT_BYTES
from ernie_local.kernels.memory import map_bytes
from ernie_local.sizes import format_bytes

LockStep = Literal["pinned", "locked", "pageable"]
# Locks memory by address and bytes. Gives back what went wrong, or None.
Register = Callable[[int, int], str | None]


@dataclass(frozen=True, slots=True)
class PageLock:
    """step: what was reached; reasons: why no better one was, in the order in which they were tried."""

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
    # CUDA reports its last error to the next caller, which must not be a kernel.
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


class PageMemory:
    """`units`: (units, UNIT_BYTES) uint8, backed by real memory from the first write on."""

    def __init__(self, num_bytes: int) -> None:
        """num_bytes: a multiple of UNIT_BYTES. MemoryError if the system gives none."""
        assert num_bytes % UNIT_BYTES == 0, num_bytes
        self._mapping, self.bytes = map_bytes(num_bytes)
        self.units = self.bytes.view(-1, UNIT_BYTES)

    @property
    def num_bytes(self) -> int:
        """Of the whole allocation, with what was discarded."""
        return self.bytes.nbytes

    def discard(self, offset: int, num_bytes: int) -> None:
        """Give this range, multiples of UNIT_BYTES, back to the system. It reads as zeros afterwards."""
        self._mapping.madvise(mmap.MADV_DONTNEED, int(self.bytes.storage_offset()) + offset, num_bytes)


def trim_heap() -> None:
    """Give memory that the allocator keeps after a free back to the system, where there is a call for it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


_STEPS = 16  # after a failed allocation, the next try asks for a sixteenth of the wanted bytes less


class GpuMemory:
    """Memory of a GPU for pages and a KV cache. `units`: (units, UNIT_BYTES) uint8.

    One allocation, of which no part goes back: an allocator of the GPU could not use a hole in it.
    """

    def __init__(self, memory: torch.Tensor, planned_bytes: int) -> None:
        """memory: (num_bytes,) uint8, of a multiple of UNIT_BYTES; planned_bytes: what was asked for."""
        assert len(memory) % UNIT_BYTES == 0, len(memory)
        self.planned_bytes = planned_bytes
        self.bytes = memory
        self.units = memory.view(-1, UNIT_BYTES)

    @property
    def num_bytes(self) -> int:
        """Of the whole allocation."""
        return self.bytes.nbytes


def allocate_pages(
    allocate: Callable[[int], torch.Tensor],
    wanted_bytes: int,
    least_bytes: int,
    room_bytes: int,
    frame_bytes: int,
) -> GpuMemory:
    """Allocate up to `wanted_bytes` of a GPU in whole frames, leaving `room_bytes` free for other work.

    allocate: gives (num_bytes,) uint8 of the GPU, or raises torch.OutOfMemoryError. DoesNotFit if not even
    `least_bytes` are left.
    """
    wanted_bytes = wanted_bytes // frame_bytes * frame_bytes
    step = -(-wanted_bytes // _STEPS)
    room: torch.Tensor | None = None
    attempt = wanted_bytes
    while attempt >= least_bytes:
        try:
            # Held while pages are allocated: torch keeps it after the free and uses it for other work.
            room = allocate(room_bytes) if room is None else room
            return GpuMemory(allocate(attempt), wanted_bytes)
        except torch.OutOfMemoryError:
            smaller = max(least_bytes, attempt - step) if attempt > least_bytes else 0
            attempt = smaller // frame_bytes * frame_bytes
    raise DoesNotFit(
        f"could not allocate {format_bytes(least_bytes)} on the GPU, the minimum for a conversation and one "
        f"token's experts, besides {format_bytes(room_bytes)} of workspace; {format_bytes(wanted_bytes)} "
        "was planned",
        "another program took memory of the GPU meanwhile, or its driver keeps more than it reports",
        f"close other programs, use a smaller context or {parameter('kv_dtype', 'int8')}, or lower "
        f"{parameter('vram')}",
    )
