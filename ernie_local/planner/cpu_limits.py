"""Chooses how many CPU threads to compute with: by kinds of cores, quotas and limits of processes.

And says which processor it is.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ernie_local.errors import DoesNotFit, UsageError, parameter
from ernie_local.planner.control_groups import SYSTEM_ROOT, ControlGroup, control_groups
from ernie_local.planner.core_kinds import CoreKinds, find_core_kinds

# torch and our kernels each have threads of their own, one of which is the caller.
_POOLS = 2
# Besides: four that read pages, two that check them or one that copies them to a GPU, and some to spare.
_OTHER_THREADS = 8


class CpuLimits(NamedTuple):
    """processors: of the machine; usable: those of them that this process may run on; quota: CPUs of time
    that a container may have, None without a limit; kinds: the usable cores where they are of two kinds."""

    processors: int
    usable: int
    quota: float | None
    kinds: CoreKinds | None = None

    @staticmethod
    def of_machine(root: Path = SYSTEM_ROOT) -> CpuLimits:
        """root: the folder that holds proc and sys."""
        kinds = find_core_kinds(_usable_processors(), root)
        return CpuLimits(_num_processors(), usable_cpus(), cpu_quota(root), kinds)

    @property
    def useful_threads(self) -> int:
        """More than these wait for each other; a part of a CPU counts as one."""
        return self.usable if self.quota is None else max(1, min(self.usable, math.ceil(self.quota)))


def usable_cpus() -> int:
    """Logical processors that this process may run on."""
    return len(_usable_processors())


def cpu_quota(root: Path = SYSTEM_ROOT) -> float | None:
    """CPUs whose time the tightest control group allows; None without a quota."""
    quotas = (_group_quota(group) for group in control_groups("cpu", root))
    return min((quota for quota in quotas if quota is not None), default=None)


def check_threads(threads: int | None) -> int | None:
    """`threads` as it is. UsageError for less than one, DoesNotFit for more than there are processors."""
    if threads is not None and threads < 1:
        raise UsageError(
            f"{parameter('threads', threads)}: {threads} threads, at least 1 is needed",
            "a thread computes",
            parameter("threads", 1),
        )
    most = _num_processors()
    if threads is not None and threads > most:
        raise DoesNotFit(
            f"{parameter('threads', threads)}: this machine has {most} logical processors",
            "more threads than processors wait for each other",
            f"{parameter('threads', most)} or less",
        )
    return threads


def startable_threads(wanted: int) -> int:
    """How many of `wanted` more threads the system lets this process start. They end at once."""
    gate, started = threading.Event(), list[threading.Thread]()
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=gate.wait)
            thread.start()
            started.append(thread)
    except RuntimeError:  # a limit of processes or memory is reached
        pass
    finally:
        gate.set()
        for thread in started:
            thread.join()
    return len(started)


def choose_threads(
    asked: int | None,
    default: int,
    limits: CpuLimits,
    startable: Callable[[int], int] = startable_threads,
    *,
    efficiency_cores: bool | None = None,
) -> tuple[int, str | None]:
    """The threads to compute with, and what a user should know about that.

    asked: None for `default`, or as many as are useful. efficiency_cores: whether they made computing faster,
    None where nobody measured. DoesNotFit where the system lets so few start that `asked` cannot be had.
    """
    allowed = min(default, limits.useful_threads)
    threads = allowed if asked is None else asked
    if asked is None and limits.kinds is not None and not efficiency_cores:
        threads = min(allowed, limits.kinds.performance)
    wanted = _POOLS * (threads - 1) + _OTHER_THREADS
    left = startable(wanted)
    possible = (left - _OTHER_THREADS) // _POOLS + 1
    if left < wanted and (asked is not None or possible < 1):
        fewer = f"{parameter('threads', possible)}, or " if possible > 0 else ""
        raise DoesNotFit(
            f"{wanted} more threads are needed to compute with {threads}, the system lets {left} start",
            "processes are limited, of this user (ulimit -u) or this container (pids.max), or the addresses "
            "that their stacks take (ulimit -v)",
            f"{fewer}raise that limit, or end other programs",
        )
    if left < wanted:
        return possible, (
            f"{_count(possible, 'thread')} instead of {threads}: the number of processes is limited "
            "(ulimit -u, or pids.max of a container), or the addresses for their stacks (ulimit -v)"
        )
    if threads < allowed and asked is None:
        return threads, f"{_count(threads, 'thread')} instead of {allowed}: {_why_not_all(efficiency_cores)}"
    if threads < default and asked is None:
        return threads, f"{_count(threads, 'thread')} instead of {default}: {_allowed(limits)}"
    if threads > limits.useful_threads:
        return threads, f"{threads} threads will wait for each other: {_allowed(limits)}"
    return threads, None


def _why_not_all(efficiency_cores: bool | None) -> str:
    if efficiency_cores is None:
        return "efficiency cores may make the others wait; `ernie-local bench` measures whether they help"
    return "with this processor's efficiency cores, `ernie-local bench` measured less speed"


def _allowed(limits: CpuLimits) -> str:
    if limits.quota is not None and limits.quota < limits.usable:
        return f"a quota (of this container) allows the time of {limits.quota:g} CPUs"
    return f"this process may run on {_count(limits.usable, 'CPU')}"


def _group_quota(group: ControlGroup) -> float | None:
    if group.is_v2:
        numbers = group.numbers("cpu.max")
    else:
        numbers = [group.number("cpu.cfs_quota_us"), group.number("cpu.cfs_period_us")]
    quota, period = numbers if len(numbers) == 2 else (None, None)
    return quota / period if quota and period else None


def _usable_processors() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0) if sys.platform == "linux" else range(_num_processors()))


def _num_processors() -> int:
    return os.cpu_count() or 1


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def cpu_model_name(information: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name for itself as it says it, else the kind of machine."""
    try:
        text = information.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name[ \t]*:[ \t]*(\S.*)", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()
