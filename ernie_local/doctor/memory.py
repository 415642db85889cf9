"""The check of main memory. Whether a given model fits is not said here: loading it decides that."""

from __future__ import annotations

import psutil

from ernie_local.doctor.finding import Finding
from ernie_local.sizes import GIB, format_bytes

NAME = "memory"
# PyTorch, the smallest model and a page of pictures take about this much.
_LITTLE = GIB


def check() -> Finding:
    """Slow where so little is free that the system would swap."""
    memory = psutil.virtual_memory()
    facts = {"free_bytes": memory.available, "total_bytes": memory.total}
    text = f"{format_bytes(memory.available)} RAM free of {format_bytes(memory.total)}"
    if memory.available < _LITTLE:
        return Finding(NAME, "slow", text, f"close other programs: {format_bytes(_LITTLE)} is little", facts)
    return Finding(NAME, "ok", text, None, facts)
