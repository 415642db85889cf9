"""What paging asks of whoever computes: copies and their order. Nothing else of paging touches a GPU.

Owns the protocols, and the processor, for which there is nothing to do. A GPU is cuda_device.py; tests have
one that finds what is not in order. Knows neither pages nor experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ernie_local.experts.page_lock import PageLock
from ernie_local.experts.page_memory import PageMemory


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
    """A device with a memory of its own, and a second stream in which pages are copied there, in order.

    kernels: what computes packed weights there, one of kernels.arguments.GpuKernels.
    """

    kernels: str

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
