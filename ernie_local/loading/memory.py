"""What a model will take in memory, and the refusal of what does not fit, before anything is read.

Counts weights and KV cache exactly. Activations and the interpreter are not counted here.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from ernie_local.errors import DoesNotFit
from ernie_local.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of the weights as they will lie in memory, and of the KV cache."""

    weight_bytes: int
    kv_cache_bytes: int

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.weight_bytes + self.kv_cache_bytes

    def __str__(self) -> str:
        return (
            f"{format_bytes(self.total_bytes)} ({format_bytes(self.weight_bytes)} weights, "
            f"{format_bytes(self.kv_cache_bytes)} KV cache)"
        )


def check_memory(
    need: MemoryNeed, device: torch.device, ram_limit: int | None, vram_limit: int | None
) -> None:
    """Raise DoesNotFit, with both numbers, if `need` exceeds the caller's limit or what is free now."""
    limit, option = (ram_limit, "ram") if device.type == "cpu" else (vram_limit, "vram")
    hint = "use dtype bfloat16, a smaller context or kv_dtype int8"
    if limit is not None and need.total_bytes > limit:
        raise DoesNotFit(
            f"the model needs {need}, the {option} limit is {format_bytes(limit)}",
            "all weights are held in memory, and a limit is never exceeded",
            f"raise {option}, or {hint}",
        )
    free = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    # The cache is touched only as the conversation grows, so the weights alone decide whether loading can
    # work.
    if need.weight_bytes > free:
        raise DoesNotFit(
            f"the model needs {need}, {format_bytes(free)} are free on {device}",
            "all weights are held in memory, and swapping would make every token take minutes",
            f"close other programs, or {hint}",
        )
