"""Allocates host memory in huge pages, sends tensors of the host to a GPU without waiting, receives others.

With 4 KiB pages a stream of weights asks for a new translation, and the hardware's prefetchers stop, every 4
KiB.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ernie_local.sizes import HUGE_PAGE


def empty_bytes(num_bytes: int) -> Tensor:
    """(num_bytes,) uint8, zeros, not yet backed by memory; starts at a multiple of 2 MiB where that helps.

    MemoryError if the system gives none.
    """
    if num_bytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(num_bytes, dtype=torch.uint8, device="cpu")
    return map_bytes(num_bytes)[1]  # keeps the mapping alive, which ends with it


def map_bytes(num_bytes: int) -> tuple[mmap.mmap, Tensor]:
    """A mapping, and of it (num_bytes,) uint8, zeros, from a multiple of 2 MiB on.

    Huge pages are a wish, not a demand: without them the system gives small ones. MemoryError if there are
    none of these either.
    """
    try:
        mapping = mmap.mmap(-1, num_bytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{num_bytes} bytes of memory: {error.strerror}") from error
    if hasattr(mmap, "MADV_HUGEPAGE") and num_bytes >= HUGE_PAGE:
        with contextlib.suppress(OSError):  # a kernel built without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    everything = torch.frombuffer(mapping, dtype=torch.uint8)
    start = -everything.data_ptr() % HUGE_PAGE
    return mapping, everything[start : start + num_bytes]


class PinningFailed(UserWarning):
    """CUDA gives no page-locked memory: copies between host and GPU go through ordinary memory."""


def empty_pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Host memory for copies from or to a GPU: page-locked, else ordinary, with a PinningFailed warning."""
    try:
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)
    except RuntimeError as error:  # under WSL and Windows a driver gives little of it
        _warn_of_ordinary_memory((str(error).splitlines() or ["no reason"])[0])
    return torch.empty(shape, dtype=dtype, device="cpu")


@functools.cache
def _warn_of_ordinary_memory(reason: str) -> None:
    notice = f"CUDA page-locks no memory for copies to or from the GPU ({reason}): the host waits for each"
    warnings.warn(notice, PinningFailed, stacklevel=2)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, on the host, as `device` sees it; the very tensor where that is the host.

    To a GPU through page-locked memory, which torch keeps until it has been copied: of any other memory, as
    where there is none, the host waits until all work before the copy is done.
    """
    if device.type == "cpu":
        return tensor
    return empty_pinned(tensor.shape, tensor.dtype).copy_(tensor).to(device, non_blocking=True)


def receive(tensor: Tensor) -> Tensor:
    """`tensor`, of any device, on the host, which waits until it is there; the very tensor if it was."""
    return tensor if tensor.is_cpu else empty_pinned(tensor.shape, tensor.dtype).copy_(tensor)
