"""How much memory control groups leave: both versions, nested groups, what the system can take back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_local.planner.control_groups import control_groups
from ernie_local.planner.free_memory import free_memory, left_in_group
from ernie_local.sizes import MIB
from tests.runtime.system_trees import v1_tree, v2_tree, write_tree

# After a file of 1.5 GB was read twice in a group of 2.5 GB.
STATISTICS = (
    "anon 300\nactive_file 1750\ninactive_file 40\nslab_reclaimable 10\nslab_unreclaimable 5\nfile 1790"
)


def left(root: Path) -> list[int]:
    found = map(left_in_group, control_groups("memory", root))
    return [one for one in found if one is not None]


def test_without_groups_all_that_the_system_has_is_free(tmp_path: Path) -> None:
    assert left(tmp_path) == []
    assert free_memory(tmp_path) > 64 * MIB


@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
def test_contents_of_files_are_free_however_often_they_were_read(tmp_path: Path, name: str) -> None:
    limits = {"memory.max": "max", "memory.high": "max"} | {name: "2500"}
    files = {"memory.current": "2260", "memory.stat": STATISTICS} | limits
    v2_tree(tmp_path, "/", files)
    assert left(tmp_path) == [2500 - (2260 - 1800)]
    assert free_memory(tmp_path) == 2040


def test_the_first_version_counts_groups_below_and_the_limits_above(tmp_path: Path) -> None:
    statistics = (
        "cache 1790\nactive_file 1\ninactive_file 2\nhierarchical_memory_limit 2400\n"
        "total_active_file 1750\ntotal_inactive_file 40"
    )
    files = {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.usage_in_bytes": "2260",
        "memory.stat": statistics,
    }
    v1_tree(tmp_path, "/", "memory", files)
    assert left(tmp_path) == [2400 - (2260 - 1790)]


def test_the_tightest_of_nested_groups_decides(tmp_path: Path) -> None:
    files = {
        "a/memory.max": "900",
        "a/memory.current": "500",
        "a/memory.stat": "inactive_file 100",
        "a/b/memory.max": "2000",
        "a/b/memory.high": "700",
        "a/b/memory.current": "50",
        "a/b/memory.stat": "",
        "a/b/c/memory.max": "max",
        "a/b/c/memory.current": "50",
        "other/memory.max": "10",
        "other/memory.current": "10",
    }
    v2_tree(tmp_path, "/a/b/c", files)
    assert left(tmp_path) == [650, 500]
    assert free_memory(tmp_path) == 500


@pytest.mark.parametrize(("own", "expected"), [("/docker/one", [60]), ("/docker/one/inner", [5, 60])])
def test_a_container_sees_its_part_of_the_hierarchy(tmp_path: Path, own: str, expected: list[int]) -> None:
    files = {
        "memory.limit_in_bytes": "100",
        "memory.usage_in_bytes": "40",
        "inner/memory.limit_in_bytes": "10",
        "inner/memory.usage_in_bytes": "5",
    }
    v1_tree(tmp_path, own, "memory", files, top="/docker/one")
    assert left(tmp_path) == expected


@pytest.mark.parametrize("own", ["/../elsewhere", "/gone"])
def test_a_group_that_cannot_be_seen_is_that_of_the_mount(tmp_path: Path, own: str) -> None:
    v2_tree(tmp_path, own, {"memory.max": "100", "memory.current": "40"})
    assert left(tmp_path) == [60]


@pytest.mark.parametrize("folder", ["sys/fs/cgroup", "sys/fs/cgroup/memory"])
def test_without_proc_groups_are_where_they_usually_are(tmp_path: Path, folder: str) -> None:
    names = ("memory.max", "memory.current")
    if folder.endswith("memory"):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write_tree(tmp_path, {f"{folder}/{name}": text for name, text in zip(names, ("100", "40"), strict=True)})
    assert left(tmp_path) == [60]


@pytest.mark.parametrize("limit", ["max", "", "-1", "much"])
def test_what_is_no_number_limits_nothing(tmp_path: Path, limit: str) -> None:
    v2_tree(tmp_path, "/", {"memory.max": limit, "memory.current": "40"})
    assert left(tmp_path) == []


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    v2_tree(tmp_path, "/", {"memory.high": "100", "memory.current": "140", "memory.stat": "active_file 10"})
    assert left(tmp_path) == [-30]
    assert free_memory(tmp_path) == 0
