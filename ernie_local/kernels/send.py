"""A tensor of the host on the device that computes, without a wait. Knows nothing of what it holds."""

from __future__ import annotations

import torch


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor`, on the host, as `device` sees it; the very tensor where that is the host.

    To a GPU through page-locked memory, which torch keeps until it has been copied: of any other memory the
    host waits until all work before the copy is done.
    """
    if device.type == "cpu":
        return tensor
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)
