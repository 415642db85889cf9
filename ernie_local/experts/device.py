"""Declares what paging asks of a device that computes, and implements it for the processor and for CUDA.

Nothing else of paging touches a GPU. The CUDA device is thin on purpose: tests prove the order of these calls
with a simulated device.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Protocol

import torch

from ernie_local.experts.memory import (
    PageLock,
    PageMemory,
    lock_by_system,
    lock_pages,
    pin_by_cuda,
    unpin_by_cuda,
)
from ernie_local.kernels.send import send


class Event(Protocol):
    """A point in what a device was given to do; all that was given before it in its stream is before it.

    torch.cuda.Event is one.
    """

    def synchronize(self) -> None:
        """Return when the point has been reached. Any thread may wait."""
        ...


class Device(Protocol):
    """Computes what it is given in order, perhaps later. What `send` gives, it has by then."""

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A small tensor of the host as the device sees it, as it is now. Nobody waits."""
        ...

    def read_back(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Small tensors of the device as the host sees them: one transfer, for which the host waits."""
        ...

    def mark(self) -> Event | None:
        """Reached when all that it was given to compute is done; None if it is done already."""
        ...

    def finish(self) -> None:
        """Return when it has nothing to do any more."""
        ...


class Gpu(Device, Protocol):
    """A device with a memory of its own, and a second stream in which pages are copied there, in order."""

    def lock(self, memory: PageMemory) -> PageLock:
        """Let it copy from this memory of the host as fast as it can, from now on; what could be had."""
        ...

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8 of its memory. torch.OutOfMemoryError if there is not so much."""
        ...

    def copy(self, source: torch.Tensor, into: torch.Tensor, after: Event | None) -> Event:
        """Begin to copy a page of the host, when `after` has been reached; reached when it is copied.

        Any thread may call. The host waits only where the source is not page-locked.
        """
        ...

    def compute_after(self, event: Event) -> None:
        """What is computed from now on begins when the event has been reached. The host does not wait."""
        ...


class HostDevice:
    """The processor: everything is there, and done when the call returns."""

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """See Device.send. The very tensor: what is changed in it later is seen."""
        return tensor

    def read_back(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See Device.read_back."""
        return list(tensors)

    def mark(self) -> Event | None:
        """See Device.mark."""
        return None

    def finish(self) -> None:
        """See Device.finish."""


HOST = HostDevice()


class CudaDevice:
    """A GPU. What is computed goes through the stream that is current when it is made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._computing = torch.cuda.current_stream(device)
        self._copying = torch.cuda.Stream(device)

    def lock(self, memory: PageMemory) -> PageLock:
        """See GPU.lock."""
        found = lock_pages(memory.bytes, pin_by_cuda, lock_by_system)
        if found.step == "pinned":
            weakref.finalize(memory, unpin_by_cuda, memory.bytes.data_ptr())
        return found

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """See GPU.allocate."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """See Device.send."""
        return send(tensor, self.device)

    def read_back(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See Device.read_back. The bytes of all lie in one buffer on the way."""
        buffer = to_bytes(tensors)
        host = torch.empty(buffer.shape, dtype=torch.uint8, device="cpu", pin_memory=True)
        host.copy_(buffer, non_blocking=True)
        self._computing.synchronize()
        return from_bytes(host, tensors)

    def mark(self) -> Event | None:
        """See Device.mark."""
        event = torch.cuda.Event()
        event.record(self._computing)
        return event

    def copy(self, source: torch.Tensor, into: torch.Tensor, after: Event | None) -> Event:
        """See GPU.copy."""
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
        """See GPU.compute_after."""
        assert isinstance(event, torch.cuda.Event)
        self._computing.wait_event(event)

    def finish(self) -> None:
        """See Device.finish."""
        self._copying.synchronize()
        self._computing.synchronize()


def to_bytes(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """(bytes,) uint8 of all of them, one after the other, on their device."""
    parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def from_bytes(buffer: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The inverse; of `like` only shapes and dtypes count. Copies, so that the buffer may be used again."""
    parts = buffer.split([tensor.nbytes for tensor in like])
    # A clone begins where its dtype can, which a part need not.
    return [part.clone().view(one.dtype).view(one.shape) for part, one in zip(parts, like, strict=True)]
