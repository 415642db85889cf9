"""The refusal of what exceeds a graphics card, before any weight is read. On a card nothing is paged yet."""

from __future__ import annotations

import torch

from ernie_local.errors import DoesNotFit
from ernie_local.planner.placement import MemoryNeed
from ernie_local.sizes import format_bytes


def check_card(need: MemoryNeed, device: torch.device, vram_limit: int | None) -> None:
    """Raise DoesNotFit, with both numbers, if the model exceeds the limit or what is free on the card."""
    total = need.weight_bytes + need.kv_cache_bytes
    text = (
        f"the model needs {format_bytes(total)} ({format_bytes(need.weight_bytes)} weights, "
        f"{format_bytes(need.kv_cache_bytes)} KV cache)"
    )
    hint = "use dtype bfloat16, a smaller context or kv_dtype int8"
    if vram_limit is not None and total > vram_limit:
        raise DoesNotFit(
            f"{text}, the vram limit is {format_bytes(vram_limit)}",
            "all weights are held in memory, and a limit is never exceeded",
            f"raise vram, or {hint}",
        )
    free = torch.cuda.mem_get_info(device)[0]
    # The cache is touched only as the conversation grows, so the weights alone decide whether loading works.
    if need.weight_bytes > free:
        raise DoesNotFit(
            f"{text}, {format_bytes(free)} are free on {device}",
            "all weights are held in memory of the card",
            f"close other programs, or {hint}",
        )
