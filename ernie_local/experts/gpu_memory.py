"""The memory of a GPU that pages and a KV cache lie in: one allocation, as large as the GPU allows.

Unlike RAM no part of it goes back: an allocator of the GPU needs what it gets in one piece, so whoever else
wants memory there has had it counted beforehand. Knows nothing of what lies where (gpu_room.py does).
"""

from __future__ import annotations

import torch

from ernie_local.errors import DoesNotFit
from ernie_local.experts.device import Gpu
from ernie_local.experts.page_memory import UNIT_BYTES
from ernie_local.sizes import format_bytes

_STEPS = 16  # an allocation that fails is tried again with a sixteenth of what was wanted less


class GpuMemory:
    """`units`: (units, UNIT_BYTES) uint8 on the GPU."""

    def __init__(self, memory: torch.Tensor, planned_bytes: int) -> None:
        """memory: (num_bytes,) uint8, of a multiple of UNIT_BYTES; planned_bytes: what it was to have."""
        assert len(memory) % UNIT_BYTES == 0, len(memory)
        self.planned_bytes = planned_bytes
        self.bytes = memory
        self.units = memory.view(-1, UNIT_BYTES)

    @property
    def num_bytes(self) -> int:
        """Of the whole allocation."""
        return self.bytes.nbytes


def allocate_pages(
    gpu: Gpu, wanted_bytes: int, least_bytes: int, room_bytes: int, frame_bytes: int
) -> GpuMemory:
    """As many whole frames as there are of `wanted_bytes`, with `room_bytes` left beside them for others.

    DoesNotFit where not even `least_bytes` are left.
    """
    wanted_bytes = wanted_bytes // frame_bytes * frame_bytes
    step = -(-wanted_bytes // _STEPS)
    room: torch.Tensor | None = None
    attempt = wanted_bytes
    while attempt >= least_bytes:
        try:
            # Held while pages are allocated: torch keeps what is freed, and gives it to who comes next.
            room = gpu.allocate(room_bytes) if room is None else room
            return GpuMemory(gpu.allocate(attempt), wanted_bytes)
        except torch.OutOfMemoryError:
            smaller = max(least_bytes, attempt - step) if attempt > least_bytes else 0
            attempt = smaller // frame_bytes * frame_bytes
    raise DoesNotFit(
        f"{format_bytes(wanted_bytes)} of the GPU were to hold experts and a conversation, not even the "
        f"{format_bytes(least_bytes)} that it needs with one token's experts could be had beside "
        f"{format_bytes(room_bytes)} to compute in",
        "other programs took memory of the GPU meanwhile, or its driver keeps more than it says",
        "close other programs, take a smaller context or kv_dtype int8, or lower vram",
    )
