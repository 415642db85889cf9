"""How many threads compute: by processors, by a container's quota, by limits of processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.planner.cpu_limits import (
    CpuLimits,
    check_threads,
    choose_threads,
    cpu_quota,
    startable_threads,
    usable_cpus,
)
from tests.cli.running import run_python
from tests.runtime.system_trees import v1_tree, v2_tree

FREE = CpuLimits(16, 16, None)


@pytest.mark.parametrize(
    ("maximum", "quota"),
    [("max 100000", None), ("20000 100000", 0.2), ("150000 100000", 1.5), ("", None), ("20000 0", None)],
)
def test_the_quota_of_the_second_version(tmp_path: Path, maximum: str, quota: float | None) -> None:
    assert cpu_quota(v2_tree(tmp_path, "/", {"cpu.max": maximum})) == quota


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("microseconds", "quota"), [("-1", None), ("50000", 0.5)])
def test_the_quota_of_the_first_version(
    tmp_path: Path, controllers: str, microseconds: str, quota: float | None
) -> None:
    files = {"one/cpu.cfs_quota_us": microseconds, "one/cpu.cfs_period_us": "100000"}
    assert cpu_quota(v1_tree(tmp_path, "/one", controllers, files)) == quota


def test_the_tightest_quota_of_nested_groups_decides(tmp_path: Path) -> None:
    files = {"a/cpu.max": "100000 100000", "a/b/cpu.max": "400000 100000", "a/b/c/cpu.max": "max 100000"}
    assert cpu_quota(v2_tree(tmp_path, "/a/b/c", files)) == 1


def test_without_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert CpuLimits.of_machine(tmp_path) == (os.cpu_count(), usable_cpus(), None, None)
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("limits", "threads", "told"),
    [
        (FREE, 8, ()),
        (CpuLimits(16, 16, 1.0), 1, ("1 thread instead of 8", "1 CPU")),
        (CpuLimits(16, 16, 0.2), 1, ("1 thread instead of 8", "0.2 CPUs")),
        (CpuLimits(16, 16, 2.5), 3, ("3 threads instead of 8", "2.5 CPUs")),
        (CpuLimits(16, 16, 32.0), 8, ()),
        (CpuLimits(16, 2, None), 2, ("2 threads instead of 8", "2 CPUs")),
    ],
)
def test_by_default_a_quota_is_obeyed_and_told(
    limits: CpuLimits, threads: int, told: tuple[str, ...]
) -> None:
    chosen, notice = choose_threads(None, 8, limits, lambda wanted: wanted)
    assert chosen == threads
    assert (notice is None) == (told == ())
    assert all(words in (notice or "") for words in told)


def test_what_was_asked_for_is_done_and_its_cost_told() -> None:
    chosen, notice = choose_threads(4, 8, CpuLimits(16, 16, 1.0), lambda wanted: wanted)
    assert chosen == 4
    assert "4 threads will wait for each other" in (notice or "")
    assert choose_threads(4, 8, FREE, lambda wanted: wanted) == (4, None)


@pytest.mark.parametrize("threads", [4096, 100000, 2**63])
def test_more_threads_than_processors_are_refused(threads: int) -> None:
    with pytest.raises(DoesNotFit, match=rf"threads={threads}: this machine has {os.cpu_count()} "):
        check_threads(threads)


@pytest.mark.parametrize("threads", [0, -3])
def test_less_than_one_thread_means_nothing(threads: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        check_threads(threads)
    assert check_threads(None) is None
    assert check_threads(1) == 1


def test_a_limit_of_processes_refuses_what_was_asked_for() -> None:
    with pytest.raises(DoesNotFit, match=r"compute with 8, the system lets 12 start") as caught:
        choose_threads(8, 8, FREE, lambda wanted: min(wanted, 12))
    assert "threads=3" in caught.value.hint
    assert choose_threads(3, 8, FREE, lambda wanted: min(wanted, 12)) == (3, None)


def test_a_limit_of_processes_lowers_the_default_and_says_so() -> None:
    chosen, notice = choose_threads(None, 8, FREE, lambda wanted: min(wanted, 12))
    assert chosen == 3
    assert "pids.max" in (notice or "")
    assert "ulimit -v" in (notice or "")
    with pytest.raises(DoesNotFit, match="lets 2 start"):
        choose_threads(None, 8, FREE, lambda wanted: 2)


def test_threads_that_are_tried_end_again() -> None:
    assert startable_threads(5) == 5
    assert startable_threads(0) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of Linux")
def test_a_limit_that_the_system_keeps_is_found() -> None:
    """Of addresses, which root keeps, too: stacks of threads take some."""
    code = (
        "import resource, threading\n"
        "from ernie_local.planner.cpu_limits import startable_threads\n"
        "threading.stack_size(64 << 20)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)\n"
        "print(startable_threads(100), startable_threads(1))\n"
    )
    done = run_python(code)
    few, one = map(int, done.stdout.split())
    assert (1 <= few < 6, one) == (True, 1), done.stderr
