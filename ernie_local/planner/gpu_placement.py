"""What goes on a CUDA GPU and what stays beside it, decided before any weight is read.

The arithmetic of placing is placement.py's. Here is what a GPU adds: memory that is left to other programs,
and room for work that is never experts', because it is torch's allocator that gives it out there. `load`
places by this, and `vram` tells it.
"""

from __future__ import annotations

import dataclasses
import platform
import sys

from ernie_local.config import ModelConfig
from ernie_local.errors import DoesNotFit
from ernie_local.model.memory_use import DEFAULT_CHUNK_TOKENS, prompt_room
from ernie_local.planner.placement import MemoryNeed, Placement, place_on_gpu
from ernie_local.sizes import GIB, MIB, format_bytes

# Of an image of 1280 tokens, four patches each: a page that is read at its usual size.
_PATCHES = 5120
_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class GpuLimits:
    """gpu_free: bytes of the GPU that are free; vram: what may be taken, None for all but the headroom.

    ram, reserve: of the process, as for `place_in_ram`.
    """

    gpu_free: int
    vram: int | None
    ram: int | None
    reserve: int


def headroom_bytes(system: str = sys.platform, release: str | None = None) -> int:
    """What is left of a GPU's free memory where nobody said how much to take.

    Windows, and Linux inside it, move what is too much to RAM without a word, and answers take eight times
    as long; there a desktop changes its mind about some hundred MiB.
    """
    release = platform.release() if release is None else release
    return GIB if system == "win32" or "microsoft" in release.lower() else 512 * MIB


def gpu_room(config: ModelConfig, context_size: int, chunk_tokens: int | None) -> int:
    """Bytes of the GPU for work: attending to a full context or encoding, and an image on its way.

    The KV cache is not in it: it shares memory with experts, or lies beside them where all are on the GPU.
    """
    chunk = DEFAULT_CHUNK_TOKENS if chunk_tokens is None else chunk_tokens
    return prompt_room(config, context_size, chunk, _PATCHES, _PATCHES, _FLOAT_BYTES)


def place_beside_gpu(
    need: MemoryNeed,
    config: ModelConfig,
    room_bytes: int,
    limits: GpuLimits,
    chunk_tokens: int | None = None,
    headroom: int | None = None,
) -> Placement:
    """Everything on the GPU if it fits, else experts by pages. DoesNotFit, with the numbers, if neither.

    Fitting means with the KV cache of the whole context: a conversation that was begun shall not end early.
    Until then experts have what the cache does not need yet. room_bytes: see `gpu_room`. chunk_tokens: as
    for `place_in_ram`. headroom: None for `headroom_bytes`.
    """
    gpu_free, vram_limit = limits.gpu_free, limits.vram
    left_to_others = headroom_bytes() if headroom is None else headroom
    limit = max(0, gpu_free - left_to_others) if vram_limit is None else vram_limit
    # The room is for what a prompt takes for a while.
    cache_bytes = need.kv_cache_bytes + room_bytes
    with_room = dataclasses.replace(need, kv_cache_bytes=cache_bytes, prompt_bytes=0, context_size=0)
    if gpu_free < min(limit, need.weight_bytes + with_room.kv_cache_bytes):
        raise DoesNotFit(
            f"the vram limit is {format_bytes(limit)}, {format_bytes(gpu_free)} are free on the GPU",
            "a limit says what may be taken, and the model would take more than there is",
            f"vram of {format_bytes(gpu_free)} or less, or close other programs that use the GPU",
        )
    placement = place_on_gpu(
        with_room,
        config.text,
        limit,
        limits.ram,
        limits.reserve,
        chunk_tokens,
        option=None if vram_limit is None else "vram",
    )
    if placement.gpu_bytes is None:
        return placement
    return dataclasses.replace(
        placement,
        gpu_bytes=placement.gpu_bytes - room_bytes,
        gpu_room_bytes=room_bytes,
        gpu_cache_bytes=need.kv_cache_bytes,
    )
