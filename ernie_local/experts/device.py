"""The memories that pages lie in, and the devices that compute from them: the processor, and a CUDA GPU.

RAM that a GPU copies from is page-locked by CUDA, else locked by the system, else neither. Without
page-locking, copies pass through a buffer of the driver, and the thread that starts one waits for it.

Nothing else of paging touches a GPU. The CUDA device is thin on purpose: tests prove the order of its calls
with a simulated one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from ernie_local.experts.keys import UNIT_BYTES
from ernie_local.kernels.memory import empty_pinned, map_bytes, send

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
    """RAM for pages. `units`: (units, UNIT_BYTES) uint8, backed by real memory from the first write on."""

    def __init__(self, num_bytes: int) -> None:
        """num_bytes: a multiple of UNIT_BYTES. MemoryError if the system gives none."""
        assert num_bytes % UNIT_BYTES == 0, num_bytes
        self.num_bytes = num_bytes
        self._mapping, self.bytes = map_bytes(num_bytes)
        self.units = self.bytes.view(-1, UNIT_BYTES)

    def discard(self, offset: int, num_bytes: int) -> None:
        """Give this range, multiples of UNIT_BYTES, back to the system. It reads as zeros afterwards."""
        self._mapping.madvise(mmap.MADV_DONTNEED, int(self.bytes.storage_offset()) + offset, num_bytes)


def trim_heap() -> None:
    """Give memory that the allocator keeps after a free back to the system, where there is a call for it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


class Event(Protocol):
    """A point in the work given to a device, after all that was given before in its stream.

    torch.cuda.Event is one.
    """

    def synchronize(self) -> None:
        """Return when the point has been reached. Any thread may wait."""
        ...


class Device:
    """Computes what it is given in order, perhaps later; this one, the processor, before a call returns."""

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give a small tensor of the host to the device; the host does not wait.

        A GPU gets a copy. For the processor it is the very tensor, so that later changes are seen.
        """
        return tensor

    def read_back(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy small tensors of the device to the host in one transfer, for which the host waits."""
        return list(tensors)

    def mark(self) -> Event | None:
        """An event after all computing given so far; None if that is done already."""
        return None

    def finish(self) -> None:
        """Return when the device has nothing to do any more."""


HOST = Device()


class _Span:
    """Memory of a GPU by its address, as torch accepts it."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (num_bytes,),
            "typestr": "|u1",
            "version": 3,
        }


class CudaDevice(Device):
    """A CUDA GPU, with a memory of its own, and a second stream that copies pages there in order.

    What is computed goes through the stream that is current when this is made.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # At its first product cuBLAS takes memory that it keeps: not of what is lent for a prompt later.
        ones = torch.ones(16, 16, device=device)
        torch.nn.functional.linear(ones, ones, ones[0])
        torch.nn.functional.linear(ones, ones)
        self._computing = torch.cuda.current_stream(device)
        self._copying = torch.cuda.Stream(device)

    def lock(self, memory: PageMemory) -> PageLock:
        """Lock memory of the host for fast copies until it is freed. Gives back what was reached."""
        found = lock_pages(memory.bytes, pin_by_cuda, lock_by_system)
        if found.step == "pinned":
            weakref.finalize(memory, torch.cuda.cudart().cudaHostUnregister, memory.bytes.data_ptr())
        return found

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """See Allocator."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def drop_unused(self) -> None:
        """See Allocator."""
        torch.cuda.empty_cache()

    def span(self, first: torch.Tensor, num_bytes: int) -> torch.Tensor:
        """See Allocator."""
        return torch.as_tensor(_Span(first.data_ptr(), num_bytes), device=self.device)

    def bring(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """Copy bytes of the host between what was and what will be given to be computed.

        The host waits only if the source is not page-locked.
        """
        into.copy_(source, non_blocking=True)

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """See Device.send."""
        return send(tensor, self.device)

    def read_back(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See Device.read_back; the bytes of all travel in one buffer."""
        buffer = to_bytes(tensors)
        host = empty_pinned(buffer.shape, torch.uint8)
        host.copy_(buffer, non_blocking=True)
        self._computing.synchronize()
        return from_bytes(host, tensors)

    def mark(self) -> Event | None:
        """An event of the computing stream."""
        event = torch.cuda.Event()
        event.record(self._computing)
        return event

    def copy(self, source: torch.Tensor, into: torch.Tensor, after: Event | None) -> Event:
        """Begin to copy a page of the host after `after`. The event is reached when it has been copied.

        Any thread may call. The host waits only if the source is not page-locked.
        """
        if after is not None:
            assert isinstance(after, torch.cuda.Event)
            self._copying.wait_event(after)
        with torch.cuda.stream(self._copying):
            into.copy_(source, non_blocking=True)
        # Blocking: a thread that waits for it leaves the processor to others.
        event = torch.cuda.Event(blocking=True)
        event.record(self._copying)
        return event

    def compute_after(self, event: Event) -> None:
        """Let computing that is given from now on begin after the event. The host does not wait."""
        assert isinstance(event, torch.cuda.Event)
        self._computing.wait_event(event)

    def finish(self) -> None:
        """Wait for both streams."""
        self._copying.synchronize()
        self._computing.synchronize()


def to_bytes(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """(bytes,) uint8 of all of them, one after the other, on their device."""
    parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def from_bytes(buffer: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The inverse; of `like` only shapes and dtypes count. Copies, so that the buffer may be used again."""
    parts = buffer.split([tensor.nbytes for tensor in like])
    # Clones: slices may be misaligned for their dtype.
    return [part.clone().view(one.dtype).view(one.shape) for part, one in zip(parts, like, strict=True)]
