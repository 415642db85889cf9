"""Counts a processor's performance cores, where Linux tells that it has efficiency cores besides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ernie_local.planner.control_groups import SYSTEM_ROOT, read_small_file

# Of the fastest core's capacity or clock: favoured cores of one kind differ by a few percent.
_ALIKE = 0.75
_PROCESSORS = "sys/devices/system/cpu"


class CoreKinds(NamedTuple):
    """Cores of a processor that has two kinds: those for performance, and all."""

    performance: int
    all: int


def find_core_kinds(usable: frozenset[int], root: Path = SYSTEM_ROOT) -> CoreKinds | None:
    """Of the `usable` logical processors; None where they are of one kind, or nothing tells.

    Two logical processors of one core count once. root: the folder that holds proc and sys.
    """
    performance = _performance_processors(root) & usable
    if not performance or performance == usable:
        return None
    return CoreKinds(_num_cores(performance, root), _num_cores(usable, root))


def _performance_processors(root: Path) -> frozenset[int]:
    """Empty where nothing tells."""
    # Intel's two kinds have a counter of events each, which lists its processors.
    core, atom = (_listed(root / "sys/devices" / name / "cpus") for name in ("cpu_core", "cpu_atom"))
    if core and atom:
        return core
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        found = {
            int(folder.name.removeprefix("cpu")): int(text)
            for folder in (root / _PROCESSORS).glob("cpu[0-9]*")
            if (text := read_small_file(folder / name).strip()).isdecimal()
        }
        least = _ALIKE * max(found.values(), default=0)
        fast = frozenset(processor for processor, number in found.items() if number >= least)
        if len(fast) < len(found):
            return fast
    return frozenset()


def _num_cores(processors: Iterable[int], root: Path) -> int:
    def core(processor: int) -> frozenset[int]:
        siblings = _listed(root / _PROCESSORS / f"cpu{processor}/topology/core_cpus_list")
        return siblings or frozenset([processor])

    return len({core(processor) for processor in processors})


def _listed(path: Path) -> frozenset[int]:
    """The numbers of a list such as 0-3,8; empty where there is none."""
    listed = set[int]()
    for part in read_small_file(path).strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            listed |= set(range(int(first), int(last or first) + 1))
    return frozenset(listed)
