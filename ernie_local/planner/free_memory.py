"""Finds how much memory this process may still take: what the system has, or what a container allows."""

from __future__ import annotations

from pathlib import Path

from ernie_local.planner.control_groups import SYSTEM_ROOT, ControlGroup, control_groups, read_small_file

_LIMITS_V2 = ("memory.max", "memory.high")  # beyond the second one a process is made to wait
_USED_V2, _USED_V1 = "memory.current", "memory.usage_in_bytes"
# What the system takes back when memory is asked for: contents of files, whether read once or often, and its
# own caches. In version 1 "total" counts the groups below, too, as the use does.
_RECLAIMABLE = ("active_file", "inactive_file", "slab_reclaimable")


def free_memory(root: Path = SYSTEM_ROOT) -> int:
    """Bytes that can be allocated without swapping. root: the folder that holds proc and sys."""
    import psutil

    in_groups = [left_in_group(group) for group in control_groups("memory", root)]
    free: int = min([psutil.virtual_memory().available, *(left for left in in_groups if left is not None)])
    return max(0, free)


def process_memory() -> int:
    """Bytes that this process has now."""
    import psutil

    resident: int = psutil.Process().memory_info().rss
    return resident


def left_in_group(group: ControlGroup) -> int | None:
    """Bytes below the limit of a control group; None without one. What can be reclaimed counts as free."""
    lines = read_small_file(group.folder / "memory.stat").splitlines()
    pairs = (line.partition(" ") for line in lines)
    counts = {name: int(value) for name, _, value in pairs if value.isdecimal()}
    if group.is_v2:
        limits = [group.number(name) for name in _LIMITS_V2]
        prefix = ""
    else:
        # The tightest limit of groups above, which a container may not see.
        limits = [group.number("memory.limit_in_bytes"), counts.get("hierarchical_memory_limit")]
        prefix = "total_"
    known = [limit for limit in limits if limit is not None]
    used = group.number(_USED_V2 if group.is_v2 else _USED_V1)
    if not known or used is None:
        return None
    reclaimable = sum(counts.get(prefix + name, counts.get(name, 0)) for name in _RECLAIMABLE)
    return min(known) - max(0, used - reclaimable)
