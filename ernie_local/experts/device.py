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
from ernie_local.kernels.memory import send


class Event(Protocol):
    """A point in the work given to a device, after all that was given before in its stream.

    torch.cuda.Event is one.
    """

    def synchronize(self) -> None:
        """Return when the point has been reached. Any thread may wait."""
        ...


class Device(Protocol):
    """Computes what it is given in order, perhaps later, with what `send` gave before."""

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give a small tensor of the host, as it is now, to the device. The host does not wait."""
        ...

    def read_back(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy small tensors of the device to the host in one transfer, for which the host waits."""
        ...

    def mark(self) -> Event | None:
        """An event after all computing given so far; None if that is done already."""
        ...

    def finish(self) -> None:
        """Return when the device has nothing to do any more."""
        ...


class GpuDevice(Device, Protocol):
    """A device with a memory of its own, and a second stream that copies pages there, in order."""

    def lock(self, memory: PageMemory) -> PageLock:
        """Lock this memory of the host for fast copies, as well as can be. Gives back what was reached."""
        ...

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8 of its memory. torch.OutOfMemoryError if there is not enough."""
        ...

    def copy(self, source: torch.Tensor, into: torch.Tensor, after: Event | None) -> Event:
        """Begin to copy a page of the host after `after`. The event is reached when it has been copied.

        Any thread may call. The host waits only if the source is not page-locked.
        """
        ...

    def compute_after(self, event: Event) -> None:
        """Let computing that is given from now on begin after the event. The host does not wait."""
        ...


class HostDevice:
    """The processor: everything is at hand, and done when the call returns."""

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """The very tensor: later changes to it are seen."""
        return tensor

    def read_back(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The very tensors."""
        return list(tensors)

    def mark(self) -> Event | None:
        """None: all is done."""
        return None

    def finish(self) -> None:
        """Nothing to wait for."""


HOST = HostDevice()


class CudaDevice:
    """A CUDA GPU. What is computed goes through the stream that is current when this is made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._computing = torch.cuda.current_stream(device)
        self._copying = torch.cuda.Stream(device)

    def lock(self, memory: PageMemory) -> PageLock:
        """Page-lock the memory until it is freed; see GpuDevice.lock."""
        found = lock_pages(memory.bytes, pin_by_cuda, lock_by_system)
        if found.step == "pinned":
            weakref.finalize(memory, unpin_by_cuda, memory.bytes.data_ptr())
        return found

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8 of torch's own allocator."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the GPU."""
        return send(tensor, self.device)

    def read_back(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies on the host; the bytes of all travel in one buffer."""
        buffer = to_bytes(tensors)
        host = torch.empty(buffer.shape, dtype=torch.uint8, device="cpu", pin_memory=True)
        host.copy_(buffer, non_blocking=True)
        self._computing.synchronize()
        return from_bytes(host, tensors)

    def mark(self) -> Event | None:
        """An event of the computing stream."""
        event = torch.cuda.Event()
        event.record(self._computing)
        return event

    def copy(self, source: torch.Tensor, into: torch.Tensor, after: Event | None) -> Event:
        """Copy in the copying stream; see GpuDevice.copy."""
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
        """Let the computing stream wait for the event."""
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
