"""The memory that packed dense weights lie in, one allocation on their device, and their way there.

Huge pages of their own would cost each tensor half a huge page. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.kernels.memory import empty_bytes

_ALIGNMENT = 64  # where tensors begin: a line of the processor's cache


class PackedMemory:
    """Room for some packed tensors of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, names: Iterable[str], device: torch.device) -> None:
        self._checkpoint = checkpoint
        sizes = [-(-checkpoint.packed[name].num_bytes // _ALIGNMENT) * _ALIGNMENT for name in names]
        on_host = device.type == "cpu"
        total = sum(sizes)
        # What no tensor has yet.
        self._left = empty_bytes(total) if on_host else torch.empty(total, dtype=torch.uint8, device=device)

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the host, to be looked at before `keep`."""
        stored = self._checkpoint.packed[name]
        # A GPU is filled by way of the host, one tensor at a time.
        host = self._left if self._left.is_cpu else torch.empty(stored.num_bytes, dtype=torch.uint8)
        host = host[: stored.num_bytes]
        self._checkpoint.read_packed(name, host)
        return host.view(stored.shape)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """What was read last, where it stays."""
        place = self._left[: tensor.nbytes].view(tensor.shape)
        if not place.is_cpu:
            place.copy_(tensor)
        self._left = self._left[-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT :]
        return place
