"""Performance and efficiency cores: found by what Linux tells, and used or left out as `bench` measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ernie_local.planner.core_kinds import CoreKinds, find_core_kinds
from ernie_local.planner.cpu_limits import CpuLimits, choose_threads
from tests.runtime.system_trees import hybrid_files, write_tree

KINDS = CoreKinds(performance=8, all=16)
HYBRID = CpuLimits(24, 24, None, KINDS)


@pytest.mark.parametrize("told_by", ["counters", "cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_cores_of_two_kinds_are_counted(tmp_path: Path, told_by: str) -> None:
    root = write_tree(tmp_path, hybrid_files(8, 8, told_by))
    assert find_core_kinds(frozenset(range(24)), root) == KINDS
    assert find_core_kinds(frozenset(range(4, 20)), root) == CoreKinds(6, 10)


def test_who_may_use_one_kind_alone_has_one_kind(tmp_path: Path) -> None:
    root = write_tree(tmp_path, hybrid_files(8, 8))
    assert find_core_kinds(frozenset(range(16)), root) is None
    assert find_core_kinds(frozenset(range(16, 24)), root) is None


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"sys/devices/cpu_core/cpus": "0-3"},
        {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": ""},
        {"sys/devices/cpu_core/cpus": "four", "sys/devices/cpu_atom/cpus": "4-"},
        hybrid_files(2, 0, "cpu_capacity"),
        hybrid_files(2, 0, "cpufreq/cpuinfo_max_freq"),
        {"sys/devices/system/cpu/cpu0/cpu_capacity": "many"},
    ],
)
def test_cores_that_are_alike_have_no_kinds(tmp_path: Path, files: dict[str, str]) -> None:
    assert find_core_kinds(frozenset(range(4)), write_tree(tmp_path, files)) is None


@pytest.mark.parametrize(
    ("measured", "threads", "told"),
    [
        (None, 8, "8 threads instead of 16: .* `ernie-local bench` measures whether they help"),
        (False, 8, "8 threads instead of 16: .* measured less speed"),
        (True, 16, ""),
    ],
)
def test_efficiency_cores_compute_where_that_was_measured_to_help(
    measured: bool | None, threads: int, told: str
) -> None:
    chosen, notice = choose_threads(None, 16, HYBRID, lambda wanted: wanted, efficiency_cores=measured)
    assert chosen == threads
    assert re.match(told, notice or "") if told else notice is None


def test_what_is_asked_for_or_allowed_counts_before_kinds_of_cores() -> None:
    assert choose_threads(12, 16, HYBRID, lambda wanted: wanted) == (12, None)
    assert choose_threads(None, 4, HYBRID, lambda wanted: wanted) == (4, None)
    chosen, notice = choose_threads(None, 16, HYBRID._replace(quota=6.0), lambda wanted: wanted)
    assert chosen == 6
    assert "a quota (of this container) allows the time of 6 CPUs" in (notice or "")
