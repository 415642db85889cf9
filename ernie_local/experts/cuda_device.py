"""A CUDA GPU as paging uses it: torch's streams and events, and nothing of our own.

Thin on purpose: what must hold between these calls is proven with another device (see device.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch

from ernie_local.experts.device import Event
from ernie_local.experts.page_lock import PageLock, lock_by_system, lock_pages, pin_by_cuda, unpin_by_cuda
from ernie_local.experts.page_memory import PageMemory
from ernie_local.kernels.memory import send


class CudaDevice:
    """A GPU. What is computed goes through the stream that is current when it is made."""

    def __init__(self, device: torch.device, kernels: str = "auto") -> None:
        """kernels: what computes packed weights there, one of kernels.arguments.GpuKernels."""
        self.device = device
        self.kernels = kernels
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
