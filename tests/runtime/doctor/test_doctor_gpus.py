"""The doctor's checks around graphics GPUs, with what nvidia-smi prints.

The answers are written after the documented form of `--query-gpu` and `--query-compute-apps` (CSV without
header and units); no GPU was there to record them from.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_local.doctor import cuda, gpu, link, nf4, pinned, system, triton
from ernie_local.kernels.native import Absence
from ernie_local.machine import nvidia_smi
from ernie_local.machine import pinned as pinned_memory
from ernie_local.machine.nvidia_smi import GpuProcess, GpuReport, parse_gpus
from ernie_local.planner.profile import HardwareKey, MachineProfile
from ernie_local.planner.rates import GpuRates, Rates

GPUS = (
    "0, GPU-5f1c, NVIDIA GeForce RTX 3060, 550.54.15, 8.6, 12288, 10923, 4, 16, 16, [N/A]\n"
    "1, GPU-77aa, Quadro P2000, 550.54.15, 6.1, 5120, 100, 3, 16, 8, [N/A]\n"
)
PROCESSES = (
    "GPU-77aa, C:\\Program Files\\Game, the\\game.exe, [N/A]\n"
    "GPU-5f1c, /usr/bin/python3, 1200\n"
    "GPU-77aa, /usr/lib/chrome, 310\n"
)
ONE = GpuReport(0, "GPU 9000", "550.1", (8, 6), 12 << 30, 11 << 30, 4, 16, 16, None, ())


def one(**changes: Any) -> tuple[GpuReport, ...]:
    return (dataclasses.replace(ONE, **changes),)


def profile(link_rate: float) -> MachineProfile:
    rates = Rates(1e9, 1e10, 1e11, 1e-3, 1e-4, gpu=GpuRates(3e11, link_rate, 1e13))
    return MachineProfile(HardwareKey("cpu", 2, 1 << 34, "GPU 9000"), "2026-11-27", rates, rates, {})


def test_gpus_and_who_holds_their_memory_are_read() -> None:
    first, second = parse_gpus(GPUS, PROCESSES)
    assert first == GpuReport(
        index=0,
        name="NVIDIA GeForce RTX 3060",
        driver_version="550.54.15",
        compute_capability=(8, 6),
        total_bytes=12288 << 20,
        free_bytes=10923 << 20,
        link_generation=4,
        link_width=16,
        link_width_most=16,
        driver_model=None,
        processes=(GpuProcess("python3", 1200 << 20),),
    )
    assert (second.link_width, second.link_width_most) == (8, 16)
    # The line with a comma in its path has another form, and nothing is made up of it.
    assert second.processes == (GpuProcess("chrome", 310 << 20),)


@pytest.mark.parametrize("unknown", ["[N/A]", "[Not Supported]", "[Unknown Error]", "", "N/A", "1e999", "-4"])
def test_what_the_driver_does_not_tell_is_none(unknown: str) -> None:
    line = ", ".join(["0", "GPU-1", "GPU", *[unknown] * 8])
    (found,) = parse_gpus(line, f"GPU-1, prog, {unknown}")
    numbers = (found.compute_capability, found.total_bytes, found.free_bytes, found.link_width)
    assert numbers == (None, None, None, None)
    assert found.processes == (GpuProcess("prog", None),)
    assert gpu.check((found,)).verdict == "ok"


@pytest.mark.parametrize("text", ["", "No devices were found", "a,b", "\x00\n,,,,,,,,,,\n" * 2])
def test_another_answer_makes_no_gpu_of_a_message(text: str) -> None:
    assert all(not each.name for each in parse_gpus(text, text))


def test_windows_answers_with_its_driver_model() -> None:
    line = "0, GPU-1, NVIDIA RTX 4060 Laptop GPU, 566.03, 8.9, 8188, 7100, 4, 8, 8, WDDM"
    assert parse_gpus(line, "")[0].driver_model == "WDDM"


@pytest.mark.parametrize(("script", "expected"), [("exit 9", None), ("printf %s 'x'", ())])
def test_the_tool_is_asked_and_may_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, expected: object
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(tool))
    assert nvidia_smi.read_gpus() == expected
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert nvidia_smi.read_gpus() is None


# GPU


def test_no_gpu_is_ok() -> None:
    assert (gpu.check(None).text, gpu.check(None).verdict) == ("none: no nvidia-smi that answers", "ok")
    assert gpu.check(()).facts == {"gpus": []}


@pytest.mark.parametrize(
    ("capability", "verdict", "text"),
    [((8, 0), "ok", "8.0, "), ((7, 5), "ok", "7.5 (no bfloat16"), ((7, 0), "ok", "7.0 ("),
     ((6, 1), "slow", "6.1 (no Triton")],
)  # fmt: skip
def test_what_the_gpu_can_compute(capability: tuple[int, int], verdict: str, text: str) -> None:
    found = gpu.check(one(compute_capability=capability))
    assert found.verdict == verdict
    assert f"compute capability {text}" in found.text


@pytest.mark.parametrize(("free", "verdict"), [(9 << 30, "ok"), ((9 << 30) - 1, "slow")])
def test_who_holds_the_memory_is_named(free: int, verdict: str) -> None:
    found = gpu.check(one(free_bytes=free, processes=(GpuProcess("game", 2 << 30), GpuProcess("x", None))))
    assert found.verdict == verdict
    assert "GiB free of 12.00 GiB (held by game 2.00 GiB, x)" in found.text
    assert found.facts["gpus"] == [
        {
            "name": "GPU 9000",
            "compute_capability": "8.6",
            "total_bytes": 12 << 30,
            "free_bytes": free,
            "processes": [{"name": "game", "bytes": 2 << 30}, {"name": "x", "bytes": None}],
        }
    ]


# cuda


@pytest.mark.parametrize(
    ("built_for", "driver", "text"),
    [
        (None, "550.1", "GPU 9000 is there, this PyTorch is built without CUDA"),
        ("12.8", "470.82", "driver 470.82, CUDA 12.8 needs 525 or newer"),
        ("13.0", "566.03", "driver 566.03, CUDA 13.0 needs 580 or newer"),
        ("12.8", "525.60.13", "PyTorch for CUDA 12.8 does not see it"),
        ("99.1", "470.82", "PyTorch for CUDA 99.1 does not see it"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_slow_and_says_why(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, driver: str, text: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = cuda.check(one(driver_version=driver))
    assert found.verdict == "slow"
    assert text in found.text
    assert found.facts["driver"] == driver


# link


@pytest.mark.parametrize(
    ("changes", "rate", "verdict", "text"),
    [
        ({}, None, "ok", "generation 4, lanes 16 of 16, not measured"),
        ({"link_width": 4}, None, "slow", "lanes 4 of 16"),
        ({"link_width": None, "link_generation": None}, 1e9, "ok", "generation unknown, lanes unknown of 16"),
        ({}, 24e9, "ok", "24.0 GB/s measured"),
        ({}, 15e9, "slow", "15.0 GB/s measured, 31.5 possible"),
        ({"link_generation": 3}, 12e9, "ok", "12.0 GB/s measured"),
    ],
)
def test_lanes_and_what_they_carry(
    changes: dict[str, Any], rate: float | None, verdict: str, text: str
) -> None:
    found = link.check(one(**changes), None if rate is None else profile(rate))
    assert found.verdict == verdict
    assert text in found.text
    assert found.facts["bytes_per_second"] == rate


def test_a_rate_of_a_gpu_that_is_gone_is_not_told() -> None:
    assert link.check((), profile(1e10)).facts == {
        "generation": None, "width": None, "width_most": None, "bytes_per_second": None,
    }  # fmt: skip


# triton


@pytest.mark.parametrize(
    ("version", "absence", "verdict", "fallback", "text"),
    [
        ("3.7", None, "ok", None, "Triton 3.7"),
        (
            None,
            Absence("a", "the module is not installed", "pip install it"),
            "slow",
            "torch",
            "not installed",
        ),
        (
            "3.7",
            Absence("a", "neither gcc nor clang", "install gcc"),
            "slow",
            "torch",
            "neither gcc nor clang",
        ),
    ],
)
def test_triton_is_missed_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    absence: Absence | None,
    verdict: str,
    fallback: str | None,
    text: str,
) -> None:
    asked: list[tuple[int, int] | None] = []

    def triton_absence(capability: tuple[int, int] | None) -> Absence | None:
        asked.append(capability)
        return absence

    monkeypatch.setattr(triton, "_version", lambda name: version if name == "triton" else None)
    monkeypatch.setattr(triton, "triton_absence", triton_absence)
    gpus = [dataclasses.replace(ONE, compute_capability=one) for one in ((6, 1), (8, 6), None)]
    found = triton.check(gpus)
    assert asked == [(8, 6)]
    assert (found.verdict, found.facts["fallback"]) == (verdict, fallback)
    assert text in found.text
    assert found.fix == (None if absence is None else absence.hint)


@pytest.mark.parametrize("gpus", [None, ()])
def test_triton_is_not_missed_without_a_gpu(monkeypatch: pytest.MonkeyPatch, gpus: tuple[()] | None) -> None:
    monkeypatch.setattr(triton, "_version", lambda name: None)
    found = triton.check(gpus)
    assert (found.verdict, found.text) == ("ok", "absent, and only a GPU would use it")


# nf4


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("gpus", [None, one()])
def test_who_unpacks_nf4_on_a_gpu_is_named(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[GpuReport, ...] | None, is_there: bool
) -> None:
    absence = None if is_there else Absence("a", "it is not installed", "install it")
    monkeypatch.setattr(nf4, "nf4_package_absence", lambda: absence)
    found = nf4.check(gpus)
    is_missed = gpus is not None and not is_there
    assert (found.verdict, found.facts["fallback"]) == (("slow", "torch") if is_missed else ("ok", None))
    assert found.fix == ("install it" if is_missed else None)
    assert ("plain PyTorch" in found.text) == is_missed
    assert (found.facts["bitsandbytes"] is not None) == is_there


# pinned


@pytest.mark.parametrize(("given", "verdict"), [(1 << 30, "ok"), (1 << 29, "slow")])
def test_a_driver_that_locks_little_is_slow(
    monkeypatch: pytest.MonkeyPatch, given: int, verdict: str
) -> None:
    asked: list[int] = []

    def empty(size: int, **options: Any) -> None:
        assert options["pin_memory"]
        asked.append(size)
        if size > given:
            raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(pinned_memory, "free_memory", lambda: 12 << 30)
    found = pinned.check()
    assert (found.verdict, found.facts["quota_bytes"]) == (verdict, given)
    assert max(asked) <= 3 << 30  # a fourth of what is free


def test_a_driver_that_locks_whatever_is_asked_for_is_not_asked_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "empty", lambda size, **options: None)
    for free, quota in ((1 << 40, 4 << 30), (3 << 30, 3 << 28), (0, 0)):
        monkeypatch.setattr(pinned_memory, "free_memory", lambda free=free: free)
        assert pinned_memory.pinned_quota() == quota


def test_without_a_gpu_nothing_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was locked"))
    found = pinned.check()
    assert (found.verdict, found.facts["quota_bytes"]) == ("ok", None)
    assert found.facts["limit_bytes"] == pinned_memory.locked_limit()


# system


@pytest.mark.parametrize(
    ("os_name", "version", "gpus", "spills"),
    [
        ("linux", "Linux version 6.6.87.2-microsoft-standard-WSL2", one(), True),
        ("linux", "Linux version 6.6.87.2-Microsoft", (), False),
        ("linux", "Linux version 6.8.0-generic", one(), False),
        ("win32", "", one(driver_model="WDDM"), True),
        ("win32", "", one(driver_model="TCC"), False),
        ("win32", "", one(driver_model=None), True),
    ],
)
def test_where_a_full_gpu_spills_into_ram(
    tmp_path: Path, os_name: str, version: str, gpus: tuple[GpuReport, ...], spills: bool
) -> None:
    (tmp_path / "version").write_text(version)
    found = system.check(gpus, os_name, tmp_path / "version")
    assert (found.verdict, found.facts["spills"]) == ("slow" if spills else "ok", spills)
    assert found.facts["is_wsl"] == ("icrosoft" in version)
    assert ("inside WSL" in found.text) == ("icrosoft" in version)
