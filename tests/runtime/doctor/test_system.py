"""The doctor's run over all checks, and those of Python, memory, the system and the battery."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from ernie_local.doctor import Diagnosis, Subject, examine, system, worst_verdict
from ernie_local.machine.hardware import GpuStatus
from ernie_local.planner import cpu_limits
from tests.runtime.doctor.looking import look
from tests.runtime.doctor.made_up import one
from tests.runtime.system_trees import hybrid_files, v2_tree, write_tree


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject(None, tmp_path, tmp_path / "machine.json")


def finding(verdict: Any, fix: str | None = "fix") -> Diagnosis:
    return Diagnosis("name", verdict, "text", None if verdict == "ok" else fix, {})


def test_the_worst_verdict_wins() -> None:
    ok, slow, fails = (finding(verdict) for verdict in ("ok", "slow", "fails"))
    assert worst_verdict([]) == worst_verdict([ok]) == "ok"
    assert worst_verdict([ok, slow, ok]) == "slow"
    assert worst_verdict([slow, fails, ok]) == "fails"


def test_texts_stay_on_one_line() -> None:
    found = Diagnosis("name", "slow", "a\nb", "c\n\td", {})
    assert (found.text, found.fix) == ("a b", "c d")


@pytest.mark.parametrize("verdict", ["ok", "slow"])
def test_a_fix_goes_with_what_is_not_ok_alone(verdict: Any) -> None:
    with pytest.raises(AssertionError):
        Diagnosis("name", verdict, "text", "fix" if verdict == "ok" else None, {})


def test_every_check_of_this_machine_gives_a_finding(native_kernels: ModuleType, subject: Subject) -> None:
    names = [found.name for found in examine(subject)]
    assert names == [
        *("python", "memory", "kernels", "cpu", "self-test", "cuda", "gpu", "triton", "nf4", "link"),
        *("pinned", "system", "battery", "disk", "profile"),
    ]


# python


@pytest.mark.parametrize(
    ("threads", "cpus", "verdict", "text", "fix"),
    [
        (2, 2, "ok", "2 threads on 2 CPUs", ""),
        (1, 1, "ok", "1 thread on 1 CPU", ""),
        (2, 4, "ok", "2 threads on 4 CPUs", ""),
        (1, 4, "slow", "1 thread on 4 CPUs", "unset OMP_NUM_THREADS"),
        (3, 2, "slow", "3 threads on 2 CPUs", "OMP_NUM_THREADS=2"),
    ],
)
def test_threads_suit_the_cpus(
    monkeypatch: pytest.MonkeyPatch, threads: int, cpus: int, verdict: str, text: str, fix: str
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(system, "usable_cpus", lambda: cpus)
    found = look("python")
    assert found.verdict == verdict
    assert found.text.endswith(f", PyTorch {torch.__version__}, {text}")
    assert (found.fix or "").startswith(fix)
    assert (found.facts["threads"], found.facts["usable_cpus"]) == (threads, cpus)


@pytest.mark.parametrize(
    ("quota", "verdict", "text"),
    [
        ("20000 100000", "slow", "1 thread on 2 CPUs, a quota allows the time of 0.2"),
        ("100000 100000", "ok", "1 thread on 2 CPUs, a quota allows the time of 1"),
        ("200000 100000", "ok", "2 threads on 2 CPUs"),
    ],
)
def test_the_quota_of_a_container_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, verdict: str, text: str
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(system, "usable_cpus", lambda: 2)
    found = look("python", system_root=v2_tree(tmp_path, "/", {"cpu.max": quota}))
    assert (found.verdict, found.text.partition(f"{torch.__version__}, ")[2]) == (verdict, text)
    assert found.facts["cpu_quota"] == float(quota.partition(" ")[0]) / 100000
    assert (found.fix is not None) == (verdict == "slow")


@pytest.mark.parametrize("helps", [None, False, True])
def test_performance_cores_are_told_and_used_as_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, helps: bool | None
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    monkeypatch.setattr(system, "usable_cpus", lambda: 16)
    monkeypatch.setattr(cpu_limits, "_usable_processors", lambda: frozenset(range(16)))
    stored = None if helps is None else (SimpleNamespace(efficiency_cores=helps), None)
    found = look(
        "python", system_root=write_tree(tmp_path, hybrid_files(4, 8)), stored_profile=stored or (None, None)
    )
    threads = 12 if helps else 4
    assert found.verdict == "ok"
    assert found.text.endswith(f", {threads} threads on 16 CPUs with 4 performance cores")
    assert (found.facts["threads"], found.facts["performance_cores"]) == (threads, 4)


def test_without_torch_it_fails_and_what_needs_torch_is_left_out(
    monkeypatch: pytest.MonkeyPatch, subject: Subject
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = list(examine(subject))
    assert [each.name for each in found] == ["python", "memory", "kernels"]
    assert found[0].verdict == "fails"
    assert "PyTorch cannot be loaded" in found[0].text
    assert found[0].facts["torch"] is None


def test_a_checkpoint_that_fails_stops_no_other_check(subject: Subject, tmp_path: Path) -> None:
    found = list(examine(dataclasses.replace(subject, model=str(tmp_path / "none"))))
    assert [each.name for each in found][-3:] == ["checkpoint", "disk", "profile"]
    assert found[-3].verdict == "fails"


# memory


@pytest.mark.parametrize(("free", "verdict"), [(1 << 30, "ok"), ((1 << 30) - 1, "slow")])
@pytest.mark.parametrize("available", [2 << 30, 0])
def test_little_memory_is_slow_whatever_leaves_so_little(
    monkeypatch: pytest.MonkeyPatch, free: int, verdict: str, available: int
) -> None:
    available = available or free
    memory = SimpleNamespace(available=available, total=8 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=4 << 30, used=1 << 30))
    monkeypatch.setattr(system, "free_memory", lambda _root: free)
    found = look("memory")
    assert found.verdict == verdict
    assert "free of 8.00 GiB" in found.text
    assert ("container's limit (2.00 GiB without it)" in found.text) == (available > free)
    assert found.text.endswith("1.00 GiB of 4.00 GiB swap in use")
    assert found.facts == {
        "free_bytes": free,
        "total_bytes": 8 << 30,
        "is_limited": available > free,
        "swap_total_bytes": 4 << 30,
        "swap_used_bytes": 1 << 30,
    }


# battery


@pytest.mark.parametrize(
    ("state", "verdict", "plugged"),
    [
        (None, "ok", None),
        (SimpleNamespace(percent=80.4, power_plugged=False), "slow", False),
        (SimpleNamespace(percent=80.4, power_plugged=True), "ok", True),
        (SimpleNamespace(percent=80.4, power_plugged=None), "ok", None),
    ],
)
def test_on_battery_it_is_slow(
    monkeypatch: pytest.MonkeyPatch, state: Any, verdict: str, plugged: bool | None
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: state, raising=False)
    found = look("battery")
    assert (found.verdict, found.facts["power_plugged"]) == (verdict, plugged)
    assert found.facts["present"] == (state is not None)


def test_without_sys_there_is_no_battery_and_without_proc_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **_options: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/or/sys")

    monkeypatch.setattr(psutil, "sensors_battery", missing, raising=False)
    assert look("battery").verdict == "ok"
    monkeypatch.setattr(psutil, "virtual_memory", missing)
    found = look("memory")
    assert (found.verdict, set(found.facts.values())) == ("fails", {None})
    assert "/proc is mounted" in (found.fix or "")
    monkeypatch.setattr(psutil, "disk_partitions", missing)
    assert look("disk").facts["file_system"] is None


def test_without_cpuinfo_the_self_test_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, float]:
        raise RuntimeError("Failed to initialize cpuinfo!")

    monkeypatch.setattr("ernie_local.doctor.cpu.measure_differences", fail)
    found = look("self-test")
    assert (found.verdict, found.facts["differences"]) == ("fails", [])
    assert "/proc is mounted" in (found.fix or "")


def test_a_system_that_knows_no_batteries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert look("battery").verdict == "ok"


# system


@pytest.mark.parametrize(
    ("os_name", "release", "gpus", "spills"),
    [
        ("linux", "6.6.87.2-microsoft-standard-WSL2", one(), True),
        ("linux", "6.6.87.2-Microsoft", (), False),
        ("linux", "6.8.0-generic", one(), False),
        ("win32", "", one(driver_model="WDDM"), True),
        ("win32", "", one(driver_model="TCC"), False),
        ("win32", "", one(driver_model=None), True),
    ],
)
def test_where_a_full_gpu_spills_into_ram(
    monkeypatch: pytest.MonkeyPatch, os_name: str, release: str, gpus: tuple[GpuStatus, ...], spills: bool
) -> None:
    monkeypatch.setattr("sys.platform", os_name)
    monkeypatch.setattr("platform.release", lambda: release)
    found = look("system", gpus=gpus)
    assert (found.verdict, found.facts["spills"]) == ("slow" if spills else "ok", spills)
    assert found.facts["is_wsl"] == ("icrosoft" in release)
    assert ("inside WSL" in found.text) == ("icrosoft" in release)
