"""Finds how much memory this process may still take: what the system has, or what a container allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ernie_local.errors import DoesNotFit
from ernie_local.planner.control_groups import SYSTEM_ROOT, ControlGroup, control_groups, read_small_file

_LIMITS_V2 = ("memory.max", "memory.high")  # beyond the second one a process is made to wait
_USED_V2, _USED_V1 = "memory.current", "memory.usage_in_bytes"
# What the system takes back when memory is asked for: contents of files, whether read once or often, and its
# own caches. In version 1 "total" counts the groups below, too, as the use does.
_RECLAIMABLE = ("active_file", "inactive_file", "slab_reclaimable")


def free_memory(root: Path = SYSTEM_ROOT) -> int:
    """Bytes that can be allocated without swapping. root: the folder that holds proc and sys."""
    limited = [left_in_group(group) for group in control_groups("memory", root)]
    limited.append(left_of_addresses())
    free: int = min([system_memory().available, *(left for left in limited if left is not None)])
    return max(0, free)


def process_memory() -> int:
    """Bytes that this process has now."""
    resident: int = _own_memory().rss
    return resident


def address_limit() -> int | None:
    """Bytes that this process may map; None without a limit, which `ulimit -v` sets."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def left_of_addresses() -> int | None:
    """Bytes that this process may still map; None without a limit."""
    limit = address_limit()
    if limit is None:
        return None
    mapped: int = _own_memory().vms
    return limit - mapped


def system_memory() -> Any:
    """psutil's numbers of this machine's memory. DoesNotFit where the system does not tell: without /proc."""
    import psutil

    try:
        return psutil.virtual_memory()
    except OSError as error:
        raise _untold("this machine's memory", error) from error


def _own_memory() -> Any:
    import psutil

    try:
        return psutil.Process().memory_info()
    except (OSError, psutil.Error) as error:
        raise _untold("this process's memory", error) from error


def _untold(what: str, error: Exception) -> DoesNotFit:
    return DoesNotFit(
        f"the system tells 0 bytes of {what} ({error})",
        "whether a model fits is worked out before it is loaded, from what /proc says on Linux",
        "run where /proc is mounted; a container or a sandbox may hide it",
    )


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
