"""How much memory this process may still take: what the system has, or less where a container limits it.

Knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# Files of limit and use, of the unified hierarchy and of the old one, below the group's own directory.
_UNIFIED = ("memory.max", "memory.current", "memory.stat", "inactive_file")
_OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")


def free_memory() -> int:
    """Bytes that can be had without swapping."""
    import psutil

    free: int = psutil.virtual_memory().available
    for group, names in _memory_groups():
        left = _left_in(group, names)
        if left is not None:
            free = min(free, left)
    return max(0, free)


def process_memory() -> int:
    """Bytes that this process has now."""
    import psutil

    resident: int = psutil.Process().memory_info().rss
    return resident


def _memory_groups() -> list[tuple[Path, tuple[str, str, str, str]]]:
    """The groups that limit this process, its own and all above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []  # no Linux
    groups: list[tuple[Path, tuple[str, str, str, str]]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = _ROOT, _UNIFIED
        elif "memory" in controllers.split(","):
            base, names = _ROOT / "memory", _OLD
        else:
            continue
        group = base / path.strip("/")
        groups.extend((one, names) for one in (group, *group.parents) if one.is_relative_to(base))
    return groups


def _left_in(group: Path, names: tuple[str, str, str, str]) -> int | None:
    """Bytes below the group's limit; cached file contents that nobody needs count as free."""
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
