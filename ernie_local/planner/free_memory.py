"""Finds how much memory this process may still take: what the system has, or what a container allows."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# Files of limit and use of a control group, and the statistic of cached file contents, in either version.
GROUP_V2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
GROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")


def free_memory() -> int:
    """Bytes that can be allocated without swapping."""
    import psutil

    free: int = psutil.virtual_memory().available
    for group, names in _memory_groups():
        left = left_in_group(group, names)
        if left is not None:
            free = min(free, left)
    return max(0, free)


def process_memory() -> int:
    """Bytes that this process has now."""
    import psutil

    resident: int = psutil.Process().memory_info().rss
    return resident


def _memory_groups() -> list[tuple[Path, tuple[str, str, str, str]]]:
    """The control groups that limit this process: its own and all above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []  # no Linux
    groups: list[tuple[Path, tuple[str, str, str, str]]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = _ROOT, GROUP_V2
        elif "memory" in controllers.split(","):
            base, names = _ROOT / "memory", GROUP_V1
        else:
            continue
        group = base / path.strip("/")
        groups.extend((one, names) for one in (group, *group.parents) if one.is_relative_to(base))
    return groups


def left_in_group(group: Path, names: tuple[str, str, str, str]) -> int | None:
    """Bytes below the limit of a control group, None without one; inactive cached files count as free."""
    limit, used = _number(group / names[0]), _number(group / names[1])
    if limit is None or used is None:
        return None
    return limit - used + _statistic(group / names[2], names[3])


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max": no limit
        return None


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
