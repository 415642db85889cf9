"""Finds how much memory this process may still take: what the system has, or what a container allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# Files of limit and use of a control group, and the statistic of cached file contents, in either version.
GROUP_V2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
GROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")


def free_memory() -> int:
    """Bytes that can be allocated without swapping."""
    import psutil

    in_groups = [left_in_group(group, names) for group, names in _memory_groups()]
    free: int = min([psutil.virtual_memory().available, *(left for left in in_groups if left is not None)])
    return max(0, free)


def process_memory() -> int:
    """Bytes that this process has now."""
    import psutil

    resident: int = psutil.Process().memory_info().rss
    return resident


def _memory_groups() -> Iterator[tuple[Path, tuple[str, str, str, str]]]:
    """The control groups that limit this process, its own and all above it; none where this is no Linux."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = _ROOT, GROUP_V2
        elif "memory" in controllers.split(","):
            base, names = _ROOT / "memory", GROUP_V1
        else:
            continue
        group = base / path.strip("/")
        yield from ((one, names) for one in (group, *group.parents) if one.is_relative_to(base))


def left_in_group(group: Path, names: tuple[str, str, str, str]) -> int | None:
    """Bytes below the limit of a control group, None without one; inactive cached files count as free."""
    limit, used, statistics = (_text(group / name).strip() for name in names[:3])
    if not (limit.isdecimal() and used.isdecimal()):  # not there, or "max"
        return None
    inactive = dict(line.partition(" ")[::2] for line in statistics.splitlines()).get(names[3], "0")
    return int(limit) - int(used) + int(inactive)


def _text(path: Path) -> str:
    """Of a small file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
