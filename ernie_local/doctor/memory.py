"""The check of main memory. Whether a given model fits is not said here: loading it decides that."""

from __future__ import annotations

import psutil

from ernie_local.doctor.finding import Finding
from ernie_local.planner.free_memory import free_memory
from ernie_local.sizes import GIB, format_bytes

NAME = "memory"
# PyTorch, the smallest model and a page of images take about this much.
_LITTLE = GIB


def check() -> Finding:
    """Slow where so little is free that the system would swap; a container's limit counts."""
    memory, swap, free = psutil.virtual_memory(), psutil.swap_memory(), free_memory()
    facts = {
        "free_bytes": free,
        "total_bytes": memory.total,
        "is_limited": free < memory.available,
        "swap_total_bytes": swap.total,
        "swap_used_bytes": swap.used,
    }
    text = f"{format_bytes(free)} RAM free of {format_bytes(memory.total)}"
    if free < memory.available:
        text += f", by this container's limit ({format_bytes(memory.available)} without it)"
    text += f"; {format_bytes(swap.used)} of {format_bytes(swap.total)} swap in use" if swap.total else ""
    if free < _LITTLE:
        fix = f"close other programs, or raise the container's limit: {format_bytes(_LITTLE)} is little"
        return Finding(NAME, "slow", text, fix, facts)
    return Finding(NAME, "ok", text, None, facts)
